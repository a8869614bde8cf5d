// Where it is stuck: partitions nobody gets on with, tasks that hang, resources
// that are tried again, and paused ones.

import { byId, change, h, keyed, lookUp, readOnly, text } from "./dom.js";
import { ago, count, span } from "./format.js";

/** A heading, a list below it, and a line for what is not shown. */
class Group {
  constructor(title, none) {
    this.title = h("h3", {}, title);
    this.list = h("ol", { class: "plain" });
    this.more = h("p", { class: "note" });
    this.none = none;
    this.element = h("div", { class: "group" }, this.title, this.list, this.more);
  }

  show(items, total, key, make, update) {
    keyed(this.list, items, key, make, update);
    const hidden = total - items.length;
    text(this.more, total === 0 ? this.none : hidden > 0 ? `and ${count(hidden)} more` : "");
  }
}

export class Attention {
  constructor() {
    this.stuck = new Group("Stuck partitions", "none");
    this.late = new Group("Tasks that run for over half of their time", "none");
    this.retrying = new Group("Retrying resources", "none");
    this.paused = new Group("Paused", "none");
    byId("attention").replaceChildren(
      this.stuck.element,
      this.late.element,
      this.retrying.element,
      this.paused.element,
    );
  }

  show({ stuck, late, late_total: lateTotal, retrying, retrying_total: total, paused, at_us: now }) {
    this.stuck.show(stuck.slice(0, 20), stuck.length, (one) => `${one.partition} ${one.why}`, makeStuck, (line, one) =>
      {
        text(line.querySelector(".when"), `${count(one.ready)} ready, for ${span(now - one.since_us)}`);
        text(line.querySelector(".reason"), one.reason);
      },
    );
    this.late.show(late, lateTotal, (one) => `${one.worker} ${one.task}`, makeLate, (line, one) =>
      text(line.querySelector(".when"), `for ${span(one.for_ms * 1000)} of ${span(one.timeout_ms * 1000)}`),
    );
    this.late.element.hidden = lateTotal === 0;
    this.retrying.show(retrying, total, (one) => `${one.resource} ${one.task}`, makeRetrying, (line, one) => {
      text(line.querySelector(".when"), `attempt ${one.attempt} failed ${ago(one.failed_us, now)}`);
      text(line.querySelector(".reason"), one.reason ?? "");
    });
    this.paused.show(paused, paused.length, (one) => JSON.stringify(one.scope), (one) => this.#makePaused(one), (line, one) =>
      text(line.querySelector(".when"), `by ${one.by}, ${ago(one.since_us, now)}`),
    );
    this.paused.element.hidden = paused.length === 0;
  }

  #makePaused({ scope }) {
    const what = scope.resource ? lookUp(scope.resource) : scope === "all" ? "Everything" : `Partition ${scope.partition}`;
    const resume = async ({ target }) => {
      target.disabled = true;
      try {
        await change("/api/resume", { scope });
      } catch (error) {
        text(this.paused.more, error.message);
        target.disabled = false;
      }
    };
    const button = h("button", { type: "button", class: "quiet", onclick: resume }, "Resume");
    return h("li", {}, what, h("span", { class: "when faint" }), readOnly() ? null : button);
  }
}

const makeStuck = (one) =>
  h(
    "li",
    { class: "stuck" },
    h("span", { class: "badge bad" }, String(one.partition)),
    h("span", { class: "when" }),
    h("span", { class: "reason" }),
  );

const makeLate = (one) =>
  h(
    "li",
    { class: "late" },
    lookUp(one.resource),
    h("span", { class: "when faint" }),
    h("span", { class: "reason" }, `task ${one.task}, attempt ${one.attempt} on ${one.worker}`),
  );

const makeRetrying = (one) =>
  h("li", {}, lookUp(one.resource), h("span", { class: "when faint" }), h("span", { class: "reason" }));
