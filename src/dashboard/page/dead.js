// The dead letters: read when their number has changed, never all of them.

import { ask, byId, change, confirmed, h, keyed, lookUp, readOnly, text } from "./dom.js";
import { ago, count, moment } from "./format.js";

/** A little later than the last change: several come at once. */
const SETTLE_MS = 300;

/** So many reasons are shown, the most common first. */
const REASONS = 5;

/** What is done for good looks like it. */
const LOOK = { replay: "quiet", discard: "danger" };

export class DeadLetters {
  #total = null;
  #timer = null;
  #letters = [];
  #now = 0;

  constructor() {
    this.reasons = h("ul", { class: "plain reasons", "aria-label": "By reason" });
    this.list = h("ol", { class: "plain letters" });
    byId("dead").replaceChildren(this.reasons, this.list);
    this.problem = byId("dead-problem");
    this.all = ["replay", "discard"].map((verb) =>
      h("button", { type: "button", class: LOOK[verb], hidden: true, onclick: () => this.#actOnAll(verb) }, `${name(verb)} all`),
    );
    byId("dead-actions").replaceChildren(...this.all);
  }

  show({ totals, at_us: now }) {
    this.#now = now;
    if (totals.dead === this.#total) return;
    this.#total = totals.dead;
    this.#tell();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#read(), SETTLE_MS);
  }

  #tell() {
    const [shown, total] = [this.#letters.length, this.#total ?? 0];
    text(byId("dead-note"), total === 0 ? "none" : shown < total ? `the oldest ${shown} of ${count(total)}` : count(total));
    for (const button of this.all) button.hidden = total === 0 || readOnly();
  }

  async #read() {
    try {
      const { letters } = this.#total === 0 ? { letters: [] } : await ask("/api/dead");
      this.#letters = letters;
      this.#fail(null);
    } catch (error) {
      this.#fail(error);
      return;
    }
    keyed(this.list, this.#letters, (letter) => letter.key, (letter) => this.#make(letter));
    this.#group();
    this.#tell();
  }

  /** The letters that are shown, by their reason: most of them have one in common. */
  #group() {
    const groups = new Map();
    for (const letter of this.#letters) {
      groups.set(letter.reason, [...(groups.get(letter.reason) ?? []), letter]);
    }
    const alike = [...groups].filter(([, letters]) => letters.length > 1);
    alike.sort(([, a], [, b]) => b.length - a.length);
    const rows = alike.slice(0, REASONS).map(([reason, letters]) => {
      const buttons = ["replay", "discard"].map((verb) =>
        h(
          "button",
          { type: "button", class: LOOK[verb], onclick: (event) => this.#actOnGroup(verb, letters, event.target) },
          `${name(verb)} ${count(letters.length)}`,
        ),
      );
      return h(
        "li",
        {},
        h("span", { class: "badge" }, count(letters.length)),
        h("span", { class: "reason" }, reason),
        readOnly() ? null : h("span", { class: "actions" }, buttons),
      );
    });
    this.reasons.replaceChildren(...rows);
    this.reasons.hidden = rows.length === 0;
  }

  async #actOnGroup(verb, letters, button) {
    const question =
      verb === "replay"
        ? `Publish these ${count(letters.length)} dead letters again?`
        : `Discard these ${count(letters.length)} dead letters for good?`;
    if (!(await confirmed(question, name(verb)))) return;
    button.disabled = true;
    await this.#change(verb, { keys: letters.map((letter) => letter.key) });
    button.disabled = false;
  }

  #make(letter) {
    const { resource, id, reason, payload, attempts, by, from, dead_at_ms: at } = letter;
    const tried = `${count(attempts)} ${attempts === 1 ? "attempt" : "attempts"}`;
    const facts = [tried, by && `given up by ${by}`, from && `from ${from}`].filter(Boolean).join(", ");
    const buttons = ["replay", "discard"].map((verb) =>
      h("button", { type: "button", class: LOOK[verb], "aria-label": `${name(verb)} ${id ?? "it"}`, onclick: (event) => this.#act(verb, letter, event.target) }, name(verb)),
    );
    return h(
      "li",
      { "data-id": id ?? "" },
      h(
        "div",
        { class: "letter" },
        h("p", { class: "what" }, resource ? lookUp(resource) : h("span", { class: "faint" }, "no resource"), id ? lookUp(id, { class: "name faint" }) : null),
        h("p", { class: "reason" }, reason),
        h("p", { class: "faint" }, at ? h("time", { title: moment(at * 1_000) }, ago(at * 1_000, this.#now)) : null, at ? ", " : "", facts),
        h("details", {}, h("summary", {}, `Payload, ${count(letter.payload_bytes)} bytes`), h("pre", { tabindex: "0" }, payload)),
      ),
      readOnly() ? null : h("p", { class: "actions" }, buttons),
    );
  }

  async #act(verb, letter, button) {
    const what = letter.id ?? "this dead letter";
    if (verb === "discard" && !(await confirmed(`Discard ${what} for good?`, "Discard"))) return;
    button.disabled = true;
    await this.#change(verb, { keys: [letter.key] });
    button.disabled = false;
  }

  async #actOnAll(verb) {
    const total = count(this.#total);
    const question =
      verb === "replay"
        ? `Publish all ${total} dead letters again, each at the end of its resource's queue?`
        : `Discard all ${total} dead letters for good?`;
    if (await confirmed(question, `${name(verb)} all`)) await this.#change(verb, { all: true });
  }

  async #change(verb, what) {
    try {
      const { refused } = await change(`/api/dead/${verb}`, what);
      this.#fail(refused.length > 0 ? new Error(refused.join("; ")) : null);
      // The count follows within a second; what was done is gone at once.
      if (what.keys && refused.length === 0) {
        this.#letters = this.#letters.filter((letter) => !what.keys.includes(letter.key));
        keyed(this.list, this.#letters, (letter) => letter.key);
        this.#group();
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    this.problem.hidden = error === null;
    text(this.problem, error?.message ?? "");
  }
}

const name = (verb) => verb[0].toUpperCase() + verb.slice(1);
