// Looks a task or a resource up. What is looked for stands in the address, so it can
// be linked to, and the way back works.

import { ask, byId, change, h, lookUp, readOnly, row, table, text } from "./dom.js";
import { OUTCOMES, count, moment, span } from "./format.js";
import { timeline } from "./timeline.js";

const COLUMNS = [
  ["started", ""],
  ["took", "number"],
  ["outcome", ""],
  ["task", ""],
  ["worker", ""],
  ["attempt", "number spare"],
  ["epoch", "number spare"],
];

const STATES = {
  not_executed: "not executed yet",
  executing: "being executed",
  executed: "executed",
  dead_lettered: "in the dead letters",
};

export class Search {
  #asked = 0;

  constructor() {
    this.panel = byId("findings");
    this.body = byId("findings-body");
    this.query = byId("query");
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      const query = this.query.value.trim();
      if (`#q=${encodeURIComponent(query)}` === location.hash) this.#look();
      else location.hash = query ? `q=${encodeURIComponent(query)}` : "";
    });
    byId("since").addEventListener("change", () => this.#look());
    byId("findings-close").addEventListener("click", () => {
      history.pushState(null, "", location.pathname);
      this.#look();
    });
    addEventListener("hashchange", () => this.#look());
    addEventListener("popstate", () => this.#look());
    addEventListener("keydown", (event) => {
      const typing = /^(input|select|textarea)$/i.test(document.activeElement?.tagName ?? "");
      if (event.key === "/" && !typing) {
        event.preventDefault();
        this.query.focus();
      }
    });
    this.#look();
  }

  async #look() {
    const asked = ++this.#asked;
    const query = decoded(location.hash);
    this.panel.hidden = query === null;
    if (query === null) return;
    this.query.value = query;
    const title = byId("findings-title");
    text(title, query);
    this.body.replaceChildren(h("p", { class: "note", role: "status" }, "Reading the journal…"));
    this.panel.scrollIntoView({ block: "nearest" });
    const words = new URLSearchParams({ q: query });
    const since = byId("since").value;
    if (since) words.set("ago_s", since);
    try {
      const found = await ask(`/api/search?${words}`);
      if (asked === this.#asked) this.body.replaceChildren(...describe(found));
    } catch (error) {
      if (asked === this.#asked) this.body.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
    }
    title.focus({ preventScroll: true });
  }
}

function decoded(hash) {
  if (!hash.startsWith("#q=")) return null;
  try {
    return decodeURIComponent(hash.slice(3)) || null;
  } catch {
    return null;
  }
}

function describe(found) {
  const parts = [];
  const { task, resource, attempts } = found;
  if (!task && attempts.length === 0) {
    const hint = "Nothing of that name was recorded in this time. Look further back, or for another name.";
    parts.push(h("p", { class: "note" }, hint));
  }
  if (task) {
    parts.push(
      h("p", { class: "task" }, "Task ", h("code", {}, task.id), " is ", h("strong", { class: `outcome ${task.state}` }, STATES[task.state]), "."),
    );
    for (const { worker, running } of task.executing) {
      parts.push(h("p", {}, `It runs on ${worker} since ${moment(running.since_us)}, attempt ${running.attempt}.`));
    }
  }
  if (resource && attempts.length > 0) {
    const workers = new Set(attempts.map((one) => one.worker)).size;
    const some = `${found.more ? "The last " : ""}${count(attempts.length)} attempts by ${count(workers)} ${workers === 1 ? "worker" : "workers"}`;
    const verdict = found.overlaps === 0 ? "no two of them at once" : `${count(found.overlaps)} of them while another ran`;
    parts.push(
      h("p", { id: "overlaps", class: found.overlaps === 0 ? "fine" : "problem" }, "Resource ", h("strong", {}, resource), `: ${some}, ${verdict}.`),
      readOnly() ? null : pausing(resource),
      timeline(attempts),
      listed(attempts, task?.id),
    );
  }
  if (!found.complete) {
    parts.push(h("p", { class: "problem" }, "The journal is long: not all of it was read. Look less far back."));
  }
  return parts.filter(Boolean);
}

/** A button that lets nothing more of a resource be started. */
function pausing(resource) {
  const note = h("span", { class: "faint", role: "status" });
  const pause = async ({ target }) => {
    target.disabled = true;
    try {
      await change("/api/pause", { scope: { resource } });
      text(note, " Nothing more of it is started. What is paused stands under “Needs attention”.");
    } catch (error) {
      text(note, ` ${error.message}`);
      target.disabled = false;
    }
  };
  return h("p", {}, h("button", { type: "button", class: "quiet", id: "pause", onclick: pause }, "Pause this resource"), note);
}

function listed(attempts, wanted) {
  const element = h("table", {});
  const body = table(element, COLUMNS);
  for (const one of [...attempts].reverse()) {
    const line = row(COLUMNS.map(([, kind]) => kind));
    const [started, took, outcome, task, worker, attempt, epoch] = line.cells;
    text(started, moment(one.at_us));
    text(took, span(one.took_us));
    outcome.append(h("span", { class: `outcome ${one.outcome}` }, OUTCOMES[one.outcome]));
    if (one.reason) outcome.append(h("span", { class: "reason" }, one.reason));
    task.append(lookUp(one.task));
    text(worker, one.worker);
    text(attempt, String(one.attempt));
    text(epoch, one.epoch === undefined ? "–" : String(one.epoch));
    line.classList.toggle("wanted", one.task === wanted);
    body.append(line);
  }
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Attempts" }, element);
}
