// A small chart of lines over time. Paths are drawn in a box of 1,000 × 100 that is
// stretched to the panel; everything with letters is HTML.

import { h, svg, text, attribute } from "./dom.js";

const WIDTH = 1_000;
const HEIGHT = 100;

/** Series: `{name, kind, area}`; `format` tells a value. `log` for times. */
export class Chart {
  #values = [];
  #from = 0;
  #step = 1;
  #at = null;

  constructor(root, { label, series, format, log = false }) {
    Object.assign(this, { root, label, series, format, log });
    this.areas = series.map(({ kind, area }) => (area ? svg("path", { class: `area ${kind}` }) : null));
    this.lines = series.map(({ kind }) => svg("path", { class: `line ${kind}` }));
    this.grid = svg("path", { class: "grid" });
    this.cross = svg("path", { class: "cross" });
    const picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.grid,
      this.areas.filter(Boolean),
      this.lines,
      this.cross,
    );
    this.ticks = h("div", { class: "ticks", "aria-hidden": "true" });
    this.tip = h("p", { class: "tip", hidden: true });
    this.axis = h("p", { class: "axis", "aria-hidden": "true" }, h("span"), h("span", {}, "now"));
    this.plot = h("div", { class: "plot" }, picture, this.ticks, this.tip);
    root.replaceChildren(this.plot, this.axis);
    attribute(root, "role", "img");
    attribute(root, "tabindex", "0");
    root.addEventListener("pointermove", (event) => this.#point(event));
    root.addEventListener("pointerleave", () => this.#show(null));
    root.addEventListener("blur", () => this.#show(null));
    root.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Columns of values, `null` where there is none; the first is of second `from`. */
  draw(from, step, columns, summary) {
    this.#values = columns;
    this.#from = from;
    this.#step = step;
    const [low, high, ticks] = this.log ? logScale(columns) : linearScale(columns);
    const y = (value) => {
      const share = this.log
        ? (Math.log10(Math.max(value, low)) - Math.log10(low)) / (Math.log10(high) - Math.log10(low))
        : value / high;
      return HEIGHT * (1 - share);
    };
    const length = columns[0].length;
    const x = (index) => (WIDTH * (index + 0.5)) / length;
    columns.forEach((values, index) => {
      attribute(this.lines[index], "d", linePath(values, x, y));
      if (this.areas[index]) attribute(this.areas[index], "d", areaPath(values, x, y));
    });
    attribute(this.grid, "d", ticks.map((tick) => `M0 ${y(tick)}H${WIDTH}`).join(""));
    const labels = ticks.map((tick) => {
      const label = h("span", {}, this.format(tick));
      label.style.setProperty("top", `${y(tick)}%`);
      return label;
    });
    this.ticks.replaceChildren(...labels);
    text(this.axis.firstChild, `${Math.round((length * step) / 60)} min ago`);
    attribute(this.root, "aria-label", `${this.label}. ${summary}`);
    if (this.#at !== null) this.#show(Math.min(this.#at, length - 1));
  }

  #point(event) {
    const box = this.plot.getBoundingClientRect();
    const length = this.#values[0]?.length ?? 0;
    const index = Math.floor(((event.clientX - box.left) / box.width) * length);
    if (length > 0) this.#show(Math.max(0, Math.min(length - 1, index)));
  }

  #key(event) {
    const length = this.#values[0]?.length ?? 0;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.#show(null);
    if (!move || length === 0) return;
    event.preventDefault();
    this.#show(Math.max(0, Math.min(length - 1, (this.#at ?? length) + move)));
  }

  #show(index) {
    this.#at = index;
    this.tip.hidden = index === null;
    attribute(this.cross, "d", "");
    if (index === null) return;
    const length = this.#values[0].length;
    const share = (index + 0.5) / length;
    attribute(this.cross, "d", `M${WIDTH * share} 0V${HEIGHT}`);
    const when = new Date((this.#from + index * this.#step) * 1_000);
    const parts = this.series.map(({ name }, n) => {
      const value = this.#values[n][index];
      return `${name} ${value === null ? "–" : this.format(value)}`;
    });
    text(this.tip, `${when.toLocaleTimeString("en-GB")}  ${parts.join(", ")}`);
    this.tip.classList.toggle("left", share > 0.5);
    this.tip.style.setProperty("--at", `${share * 100}%`);
  }
}

function linearScale(columns) {
  const most = Math.max(1, ...columns.flat());
  const step = 10 ** Math.floor(Math.log10(most));
  const nice = [1, 2, 2.5, 5, 10].map((n) => n * step).find((n) => n >= most);
  return [0, nice, [nice / 2, nice]];
}

function logScale(columns) {
  const values = columns.flat().filter((value) => value !== null);
  if (values.length === 0) return [1e3, 1e6, [1e4, 1e5]];
  let low = 10 ** Math.floor(Math.log10(Math.max(1, Math.min(...values))));
  let high = 10 ** Math.ceil(Math.log10(Math.max(...values) + 1));
  if (high <= low) high = low * 10;
  const ticks = [];
  for (let tick = low; tick <= high; tick *= 10) ticks.push(tick);
  return [low, high, ticks.length > 5 ? ticks.filter((_, n) => n % 2 === 1) : ticks];
}

function linePath(values, x, y) {
  let path = "";
  let drawing = false;
  values.forEach((value, index) => {
    if (value === null) {
      drawing = false;
      return;
    }
    const at = `${x(index).toFixed(1)} ${y(value).toFixed(2)}`;
    // A point of its own is a dot, thanks to the round end.
    path += drawing ? `L${at}` : `M${at}h.01`;
    drawing = true;
  });
  return path;
}

function areaPath(values, x, y) {
  const top = values.map((value, index) => `L${x(index).toFixed(1)} ${y(value ?? 0).toFixed(2)}`);
  const last = x(values.length - 1).toFixed(1);
  return `M${x(0).toFixed(1)} ${HEIGHT}${top.join("")}L${last} ${HEIGHT}Z`;
}
