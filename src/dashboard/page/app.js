// Puts the page together: one picture goes to all parts of it.

import { Attention } from "./attention.js";
import { Chart } from "./charts.js";
import { DeadLetters } from "./dead.js";
import { attribute, byId, text } from "./dom.js";
import { Fleet } from "./fleet.js";
import { count, rate, short, span } from "./format.js";
import { Lists } from "./lists.js";
import { Partitions } from "./partitions.js";
import { Search } from "./search.js";
import { Stream } from "./stream.js";

const WORDS = { flowing: "Flowing", waiting: "Waiting", idle: "Idle", stuck: "Stuck", lost: "Lost" };

const throughput = new Chart(byId("throughput"), {
  label: "Tasks executed a second",
  series: [{ name: "executed", kind: "executed", area: true }, { name: "failed", kind: "failed" }],
  format: (value) => `${rate(value)}/s`,
});
const times = new Chart(byId("times"), {
  label: "What an execution takes",
  series: [{ name: "p50", kind: "p50" }, { name: "p95", kind: "p95" }],
  format: span,
  log: true,
});
const parts = [new Partitions(), new Attention(), new Fleet(), new Lists(), new DeadLetters()];

/** How long the page took, in milliseconds: to the first picture, and for the last. */
export const timing = { first: null, last: null };

/** Shows a picture. */
export function show(snapshot) {
  const began = performance.now();
  document.title = `${WORDS[snapshot.verdict.state]} · ${snapshot.namespace} · keylane`;
  text(byId("namespace"), snapshot.namespace);
  document.body.classList.toggle("stale", !snapshot.broker.connected);
  attribute(byId("verdict"), "data-state", snapshot.verdict.state);
  text(byId("verdict-word"), WORDS[snapshot.verdict.state]);
  text(byId("verdict-text"), snapshot.verdict.text);
  figures(snapshot);
  charts(snapshot.history);
  for (const part of parts) part.show(snapshot);
  timing.last = performance.now() - began;
  timing.first ??= performance.now();
}

/** Stays with what is shown. */
export const freeze = () => stream.stop();

function figures({ totals, workers, retrying_total: retrying }) {
  const answering = workers.filter((worker) => !worker.silent).length;
  const values = {
    rate: [totals.rates_known ? rate(totals.executed_per_s) : "–", "/s"],
    running: [count(totals.running), `of ${count(totals.slots)} slots`],
    ready: [short(totals.ready + totals.inbox), totals.unsettled > 0 ? `+ ${short(totals.unsettled)} held` : ""],
    workers: [count(answering), workers.length > answering ? `${workers.length - answering} silent` : ""],
    retrying: [count(retrying), retrying === 1 ? "resource" : "resources"],
    dead: [short(totals.dead), ""],
  };
  for (const [name, [value, unit]] of Object.entries(values)) {
    const element = byId(`f-${name}`);
    if (element.childElementCount === 0) element.replaceChildren(document.createElement("b"), document.createElement("small"));
    text(element.firstChild, value);
    text(element.lastChild, unit);
  }
  attribute(byId("f-dead"), "data-some", totals.dead > 0);
  attribute(byId("f-retrying"), "data-some", retrying > 0);
}

function charts(history) {
  // The present second is not over.
  const whole = (values) => values.slice(0, -1);
  const executed = whole(history.executed);
  const failed = whole(history.failed).map((value, n) => value + history.dead_lettered[n]);
  const most = Math.max(...executed);
  throughput.draw(history.from_s, 1, [executed, failed], `The last minutes, up to ${count(most)}.`);
  const half = history.p50_us.findLast((value) => value !== null);
  times.draw(
    history.from_s,
    history.slice_s,
    [history.p50_us, history.p95_us],
    half === undefined ? "Nothing was executed in the last minutes." : `Half of the last ones took ${span(half)} at the most.`,
  );
}

const link = byId("link");
const stream = new Stream(show, (state) => {
  attribute(link, "data-state", state);
  text(link, state === "live" ? "live" : "reconnecting");
  document.body.classList.toggle("cut-off", state !== "live");
});
new Search();
