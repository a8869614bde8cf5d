// All partitions, a cell each: how much waits there, whose it is, and where that
// changes.

import { h, byId, text, attribute } from "./dom.js";
import { count, span } from "./format.js";

/** Backlogs 1–3, 4–15, 16–63, 64–255, 256–1,023 and more have a colour each. */
const level = (backlog) => (backlog === 0 ? 0 : Math.min(6, Math.floor(Math.log2(backlog) / 2) + 1));

/** What a cell takes at least, in pixels. */
const WIDTHS = { large: 40, medium: 30, small: 16 };

const colours = new Map();

/** A hue for a worker, the same for as long as the page is open; far from the last. */
export function hue(worker) {
  if (!colours.has(worker)) colours.set(worker, (200 + colours.size * 137.508) % 360);
  return colours.get(worker).toFixed(1);
}

export class Partitions {
  #cells = [];
  #last = null;
  #active = 0;
  #asked = false;

  constructor() {
    this.root = byId("partitions");
    this.note = byId("partition-note");
    this.root.addEventListener("keydown", (event) => this.#key(event));
    this.root.addEventListener("focus", () => this.#tell(this.#active));
    this.root.addEventListener("blur", () => this.#untell());
    this.root.addEventListener("pointerover", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) this.#tell(Number(cell.dataset.number));
    });
    this.root.addEventListener("pointerleave", () => this.#untell());
    for (const [id, by] of [["by-backlog", "backlog"], ["by-owner", "owner"]]) {
      byId(id).addEventListener("click", () => this.#colour(by));
    }
    this.#colour("backlog");
    new ResizeObserver(() => this.#arrange()).observe(this.root);
  }

  /** As many columns as there is room for; a power of two, if that fills all rows. */
  #arrange() {
    const room = Math.max(1, Math.floor(this.root.clientWidth / WIDTHS[this.root.dataset.size]));
    const even = 2 ** Math.floor(Math.log2(room));
    const columns = this.#cells.length % even === 0 ? even : room;
    this.root.style.setProperty("--columns", columns);
  }

  #colour(by) {
    this.root.dataset.by = by;
    attribute(byId("by-backlog"), "aria-pressed", String(by === "backlog"));
    attribute(byId("by-owner"), "aria-pressed", String(by === "owner"));
  }

  show(snapshot) {
    const { partitions, workers, stuck } = snapshot;
    const number = partitions.owner.length;
    if (this.#cells.length !== number) this.#build(number);
    const stands = new Set(stuck.map((one) => one.partition));
    const owners = partitions.owner.map((place) => workers[place]?.worker ?? null);
    for (let n = 0; n < number; n++) {
      const cell = this.#cells[n];
      const backlog = partitions.ready[n] + partitions.unsettled[n];
      const state = stands.has(n) ? "stuck" : partitions.running[n] > 0 ? "runs" : "rests";
      attribute(cell, "data-level", level(backlog));
      attribute(cell, "data-state", partitions.consumed[n] ? state : stands.has(n) ? "stuck" : "unowned");
      const before = this.#last?.owners[n];
      if (cell.owner !== owners[n]) {
        cell.owner = owners[n];
        cell.classList.toggle("owned", owners[n] !== null);
        if (owners[n] !== null) cell.style.setProperty("--hue", hue(owners[n]));
      }
      if (this.#last && before !== owners[n]) flash(cell);
    }
    this.#last = { snapshot, owners };
    if (this.#asked) this.#tell(this.#active);
  }

  #build(number) {
    const size = number <= 64 ? "large" : number <= 256 ? "medium" : "small";
    this.root.dataset.size = size;
    this.#cells = Array.from({ length: number }, (_, n) =>
      h(
        "div",
        { class: "cell", role: "option", id: `partition-${n}`, "data-number": n, "aria-label": `partition ${n}` },
        size === "small" ? null : String(n),
      ),
    );
    this.root.replaceChildren(...this.#cells);
    this.#last = null;
    this.#active = 0;
    this.#arrange();
  }

  #tell(number) {
    if (!this.#last || !this.#cells[number]) return;
    this.#cells[this.#active]?.removeAttribute("aria-selected");
    this.#active = number;
    this.#asked = true;
    const { snapshot, owners } = this.#last;
    const { partitions, stuck, at_us: now } = snapshot;
    const one = stuck.find((one) => one.partition === number);
    const name = (place) => snapshot.workers[place]?.worker ?? null;
    const planned = name(partitions.planned[number]);
    const next = partitions.line[number].map(name).filter((worker) => worker && worker !== owners[number]);
    const parts = [
      `Partition ${number}`,
      owners[number] ? `owner ${owners[number]}` : "nobody owns it",
      ...(planned && planned !== owners[number] ? [`planned for ${planned}`] : []),
      ...(next.length > 0 ? [`next in line ${next.join(", ")}`] : []),
      `${count(partitions.ready[number])} ready`,
      `${count(partitions.unsettled[number])} unsettled`,
      `${count(partitions.running[number])} running`,
    ];
    if (one) parts.push(`nobody gets on with it for ${span(now - one.since_us)}`);
    text(this.note, parts.join(" · "));
    const cell = this.#cells[number];
    attribute(cell, "aria-label", parts.join(", "));
    attribute(cell, "aria-selected", "true");
    attribute(this.root, "aria-activedescendant", cell.id);
  }

  #untell() {
    if (document.activeElement === this.root) return;
    this.#asked = false;
    this.#cells[this.#active]?.removeAttribute("aria-selected");
    text(this.note, "Arrow keys and the pointer tell more of a partition.");
  }

  #key(event) {
    const columns = getComputedStyle(this.root).gridTemplateColumns.split(" ").length;
    const last = this.#cells.length - 1;
    const to = {
      ArrowRight: this.#active + 1,
      ArrowLeft: this.#active - 1,
      ArrowDown: this.#active + columns,
      ArrowUp: this.#active - columns,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to <= last) this.#tell(to);
  }
}

/** A hand-over is seen for some seconds. */
function flash(cell) {
  cell.classList.add("moved");
  clearTimeout(cell.settles);
  cell.settles = setTimeout(() => cell.classList.remove("moved"), 4_000);
}
