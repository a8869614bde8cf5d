// Elements without markup: whatever is shown is text, so a resource or a reason
// that holds markup is shown as it is.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element with attributes, listeners (`onclick`) and children. */
export const h = (tag, properties = {}, ...children) =>
  fill(document.createElement(tag), properties, children);

/** The same in SVG. */
export const svg = (tag, properties = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);

export const byId = (id) => document.getElementById(id);

/** Sets a text; the page does not notice if it is what was there. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** Sets or removes an attribute. */
export function attribute(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const rows = new WeakMap();

/**
 * Makes the children of `parent` those of `items`. Elements stay for as long as the
 * key of their item does, so focus and selection outlive a new picture.
 */
export function keyed(parent, items, key, make, update) {
  const before = rows.get(parent) ?? new Map();
  const after = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    let id = String(key(item));
    while (after.has(id)) id += "+";
    const element = before.get(id) ?? make(item);
    before.delete(id);
    after.set(id, element);
    update?.(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const gone of before.values()) gone.remove();
  rows.set(parent, after);
}

/** A link that looks a task or a resource up. */
export const lookUp = (name, more = {}) =>
  h("a", { class: "name", href: `#q=${encodeURIComponent(name)}`, title: name, ...more }, name);

/** A table with a heading, and the body to be filled. */
export function table(element, columns) {
  const heads = columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name));
  const body = h("tbody");
  element.replaceChildren(h("thead", {}, h("tr", {}, heads)), body);
  return body;
}

/** A row of cells of these kinds, and their texts. */
export const row = (kinds) => h("tr", {}, kinds.map((kind) => h("td", { class: kind })));

/** What the server says to a question; an error with its words if it says no. */
export async function ask(path, options = {}) {
  const response = await fetch(path, { headers: { accept: "application/json" }, ...options });
  if (response.status === 401) location.assign("/login");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `the server answers ${response.status}`);
  return body;
}

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content;

/** Whether this page may change something. */
export const readOnly = () => meta("keylane-read-only") === "yes";

/** Has something changed. */
export const change = (path, what) =>
  ask(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-keylane-page": meta("keylane-page") ?? "" },
    body: JSON.stringify(what),
  });

/** Asks whether it is meant. */
export function confirmed(question, yes) {
  const dialog = byId("confirm");
  text(byId("confirm-text"), question);
  text(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
