// The busiest resources, the last attempts and the last hand-overs.

import { h, byId, keyed, lookUp, row, table, text } from "./dom.js";
import { OUTCOMES, ago, clock, count, percent, rate, span } from "./format.js";

const HOT = [["resource", ""], ["busy", "gauge"], ["tasks/s", "number"], ["each", "number"]];
const RECENT = [
  ["ended", ""],
  ["outcome", ""],
  ["resource", ""],
  ["took", "number"],
  ["task", "spare"],
  ["worker", "spare"],
];

export class Lists {
  constructor() {
    this.hot = table(byId("hot"), HOT);
    this.recent = table(byId("recent"), RECENT);
    this.handovers = byId("handovers");
    this.note = byId("handovers-note");
  }

  show(snapshot) {
    const { hot, recent, handovers, totals, at_us: now } = snapshot;
    keyed(this.hot, hot, (one) => one.resource, makeHot, updateHot);
    const key = (one) => `${one.task} ${one.attempt} ${one.outcome} ${one.at_us}`;
    keyed(this.recent, recent, key, makeRecent);
    const change = (one) => `${one.partition} ${one.at_us}`;
    keyed(this.handovers, handovers.slice(0, 60), change, makeHandOver, (line, one) =>
      text(line.lastChild, ago(one.at_us, now)),
    );
    text(this.note, totals.handovers > 0 ? `${count(totals.handovers)} since the dashboard started` : "none yet");
  }
}

function makeHot(one) {
  const line = row(HOT.map(([, kind]) => kind));
  line.cells[0].append(lookUp(one.resource));
  line.cells[1].append(h("meter", { min: 0, max: 1 }), h("span"));
  return line;
}

function updateHot(line, one) {
  const [, busy, perS, each] = line.cells;
  busy.children[0].value = one.busy;
  text(busy.children[1], percent(one.busy));
  // Its tasks run one after another: it cannot go any faster.
  line.classList.toggle("full", one.busy > 0.95);
  text(perS, rate(one.per_s));
  text(each, span(one.mean_us));
}

function makeRecent(one) {
  const line = row(RECENT.map(([, kind]) => kind));
  const [ended, outcome, resource, took, task, worker] = line.cells;
  text(ended, clock(one.at_us + one.took_us));
  outcome.append(h("span", { class: `outcome ${one.outcome}`, title: one.reason ?? "" }, OUTCOMES[one.outcome]));
  if (one.attempt > 1) outcome.append(h("span", { class: "faint" }, ` attempt ${one.attempt}`));
  resource.append(lookUp(one.resource));
  text(took, span(one.took_us));
  task.append(lookUp(one.task));
  text(worker, one.worker);
  return line;
}

const makeHandOver = (one) =>
  h(
    "li",
    {},
    h("span", { class: "badge" }, String(one.partition)),
    h("span", { class: "from-to" }, h("span", { class: "faint" }, one.from ?? "nobody"), " → ", one.to ?? "nobody"),
    h("span", { class: "faint when" }),
  );
