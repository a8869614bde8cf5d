// The workers: what each runs, owns and has done.

import { h, byId, keyed, row, attribute, text } from "./dom.js";
import { ago, count, rate, span } from "./format.js";
import { hue } from "./partitions.js";

const COLUMNS = [
  { name: "worker", kind: "", by: (w) => w.worker },
  { name: "slots in use", kind: "gauge", by: (w) => w.running / w.slots, down: true },
  { name: "owns", kind: "number", by: (w) => w.owned, down: true },
  { name: "plan", kind: "number spare", by: (w) => w.planned, down: true },
  { name: "weight", kind: "number spare", by: (w) => w.weight, down: true },
  { name: "tasks/s", kind: "number", by: (w) => w.executed_per_s, down: true },
  { name: "executed", kind: "number spare", by: (w) => w.executed, down: true },
  { name: "failed", kind: "number spare", by: (w) => w.failed, down: true },
  { name: "up", kind: "number spare", by: (w) => w.uptime_ms, down: true },
  { name: "seen", kind: "number", by: (w) => w.seen_us },
];

export class Fleet {
  #column = 0;
  #down = false;
  #last = null;

  constructor() {
    const buttons = COLUMNS.map(({ name }, index) =>
      h("button", { type: "button", class: "sort", onclick: () => this.#sort(index) }, name),
    );
    this.heads = COLUMNS.map(({ kind }, index) => h("th", { scope: "col", class: kind }, buttons[index]));
    this.body = h("tbody");
    byId("fleet").replaceChildren(h("thead", {}, h("tr", {}, this.heads)), this.body);
    this.#mark();
  }

  #sort(index) {
    this.#down = index === this.#column ? !this.#down : Boolean(COLUMNS[index].down);
    this.#column = index;
    this.#mark();
    if (this.#last) this.show(this.#last);
  }

  #mark() {
    this.heads.forEach((head, index) => {
      const order = this.#down ? "descending" : "ascending";
      attribute(head, "aria-sort", index === this.#column ? order : null);
    });
  }

  show(snapshot) {
    this.#last = snapshot;
    const { workers, at_us: now } = snapshot;
    const { by } = COLUMNS[this.#column];
    const sign = this.#down ? -1 : 1;
    const compare = (a, b) => (by(a) < by(b) ? -sign : by(a) > by(b) ? sign : a.worker < b.worker ? -1 : 1);
    const silent = workers.filter((worker) => worker.silent).length;
    text(byId("fleet-note"), silent > 0 ? `${silent} silent` : "");
    keyed(this.body, [...workers].sort(compare), (worker) => worker.worker, make, (line, worker) =>
      update(line, worker, now),
    );
  }
}

function make(worker) {
  const line = row(COLUMNS.map(({ kind }) => kind));
  const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.setProperty("--hue", hue(worker.worker));
  line.cells[0].append(h("span", { class: "worker", title: worker.worker }, swatch, worker.worker));
  line.cells[1].append(h("meter", { min: 0 }), h("span"));
  return line;
}

function update(line, worker, now) {
  const [, slots, owns, plan, weight, perS, executed, failed, up, seen] = line.cells;
  const [meter, used] = slots.children;
  meter.max = worker.slots;
  meter.value = worker.running;
  attribute(meter, "aria-label", `${worker.running} of ${worker.slots} slots`);
  text(used, `${worker.running}/${worker.slots}`);
  text(owns, count(worker.owned));
  text(plan, count(worker.planned));
  text(weight, String(worker.weight));
  text(perS, rate(worker.executed_per_s));
  text(executed, count(worker.executed));
  text(failed, count(worker.failed));
  text(up, span(worker.uptime_ms * 1_000));
  text(seen, worker.silent ? `silent, ${ago(worker.seen_us, now)}` : ago(worker.seen_us, now));
  line.classList.toggle("silent", worker.silent);
}
