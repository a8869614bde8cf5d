// Executions on one resource over time: a row for each worker below one for the
// resource, which shows at a glance that no two ran at once. Where nothing ran, time
// is pressed together.

import { h, svg } from "./dom.js";
import { OUTCOMES, clock, span } from "./format.js";
import { hue } from "./partitions.js";

const WIDTH = 1_000;
const ROW = 26;
const SHOWN = 80;

/** What a stretch of time is wide: long ones less than they are, short ones visible. */
const weight = (us, busy) => (busy ? 3 + Math.sqrt(us / 1_000) : Math.min(12, 1 + Math.sqrt(us / 1_000)));

/** Attempts `{worker, at_us, took_us, outcome, …}`, as the journal has them. */
export function timeline(attempts) {
  const ran = attempts.filter((one) => !["dead_lettered", "superseded"].includes(one.outcome)).slice(-SHOWN);
  const bars = ran.map((one) => ({ one, from: one.at_us, to: one.at_us + Math.max(1, one.took_us) }));
  const x = scale(bars);
  const workers = [...new Set(bars.map(({ one }) => one.worker))];
  const rows = ["this resource", ...workers];
  const height = rows.length * ROW;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, height, preserveAspectRatio: "none", "aria-hidden": "true" });
  rows.forEach((_, index) => {
    picture.append(svg("path", { class: "grid", d: `M0 ${(index + 1) * ROW - 0.5}H${WIDTH}` }));
  });
  let ended = 0;
  for (const { one, from, to } of bars) {
    const clashes = from < ended;
    ended = Math.max(ended, to);
    for (const place of [0, 1 + workers.indexOf(one.worker)]) {
      const bar = svg(
        "rect",
        {
          x: x(from).toFixed(2),
          y: place * ROW + 5,
          width: Math.max(1, x(to) - x(from)).toFixed(2),
          height: ROW - 10,
          class: `bar ${one.outcome}${clashes ? " clash" : ""}`,
        },
        svg("title", {}, `${one.task}: ${OUTCOMES[one.outcome]} on ${one.worker}, ${clock(from)}, ${span(to - from)}`),
      );
      bar.style.setProperty("--hue", hue(one.worker));
      picture.append(bar);
    }
  }
  const names = h("div", { class: "rows", "aria-hidden": "true" }, rows.map((name) => h("span", { title: name }, name)));
  const from = bars[0] ? clock(bars[0].from) : "";
  const to = bars.length > 0 ? clock(ended) : "";
  return h(
    "figure",
    { class: "timeline" },
    h("div", { class: "tracks" }, names, picture),
    h("figcaption", {}, h("span", {}, from), h("span", {}, "time in which nothing ran is shortened"), h("span", {}, to)),
  );
}

/** A scale that keeps the order of all beginnings and ends. */
function scale(bars) {
  const edges = [...new Set(bars.flatMap(({ from, to }) => [from, to]))].sort((a, b) => a - b);
  const places = new Map([[edges[0], 0]]);
  let sum = 0;
  for (let n = 1; n < edges.length; n++) {
    const [start, end] = [edges[n - 1], edges[n]];
    sum += weight(end - start, bars.some(({ from, to }) => from <= start && to >= end));
    places.set(end, sum);
  }
  return (us) => (WIDTH * (places.get(us) ?? 0)) / Math.max(1, sum);
}
