/** Elements from data. Text always becomes a text node: nothing that a model or a user wrote is read as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 * @param {string} tag name of the element; "svg:line" is one of SVG
 * @param {object} props attributes; `on`: event listeners, `css`: custom properties of CSS, `value`, `checked` and
 *   `hidden`: properties. An attribute that is false, null or undefined is left out.
 * @param {...(Node|string|number|null|Array)} children nodes and texts
 */
export function h(tag, props = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "css")
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else if (value === false || value === null || value === undefined) continue;
    else if (name !== "value" && name !== "checked" && name !== "hidden")
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  // After the children: the value of a select is one of its options.
  for (const name of ["value", "checked", "hidden"]) if (props[name] !== undefined) element[name] = props[name];
  return element;
}

/** A table: `heads` are texts, `rows` lists of cells. */
export function table(heads, rows) {
  const head = heads.map((text) => h("th", { scope: "col" }, text));
  const body = rows.map((cells) => h("tr", {}, cells));
  return h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
}

let ids = 0;
export const newId = () => `e${++ids}`;

/** A labelled control: `label` is its visible text, `note` a sentence below it. */
export function field(label, control, note) {
  control.id ||= newId();
  const hint = note && h("span", { class: "note", id: newId() }, note);
  if (hint) control.setAttribute("aria-describedby", hint.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint);
}

/** A labelled text area whose text is `values[name]`; `set(name, text)` is told of changes. */
export const area = (name, label, values, set, rows = 3) =>
  field(
    label,
    h("textarea", {
      rows,
      value: values[name],
      spellcheck: "false",
      on: { input: (event) => set(name, event.target.value) },
    }),
  );

/** The same with one line; `more`: further attributes. */
export const line = (name, label, values, set, note, more = {}) =>
  field(
    label,
    h("input", {
      type: "text",
      autocomplete: "off",
      value: values[name],
      on: { input: (event) => set(name, event.target.value) },
      ...more,
    }),
    note,
  );

/** A select of `options`, pairs of value and text. */
export function select(options, value, onChange) {
  const listener = (event) => onChange(event.target.value);
  return h(
    "select",
    { value, on: { change: listener } },
    options.map(([key, text]) => h("option", { value: key }, text)),
  );
}

/** Probability as percent; small ones keep a digit. */
export function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** One bar per item {label, value in 0…1, text, code}. `code`: the label is a token of a vocabulary. */
export function bars(items, label) {
  return h(
    "ul",
    { class: "bars", "aria-label": label },
    items.map((item) =>
      h(
        "li",
        {},
        h("span", { class: item.code === false ? "name" : "name code" }, item.label),
        h("span", { class: "track" }, h("span", { class: "fill", css: { "--p": `${100 * clamp(item.value)}%` } })),
        h("span", { class: "number" }, item.text ?? percent(item.value)),
      ),
    ),
  );
}

export const clamp = (x) => Math.min(1, Math.max(0, x));

/** Makes white space of a token visible. */
export function visible(token) {
  return token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * Moves the focus among elements by arrow keys, Home and End; one of them is in the tab order (a roving tabindex).
 * @param {Element} parent holds all of them
 * @param {Element[][]} rows elements as they stand, rows of equal length; in a single row or column all arrows walk along
 * @param {(row: number, column: number) => void} onActive called when an element gets the focus or the pointer
 */
export function roving(parent, rows, onActive) {
  const places = new Map(rows.flatMap((cells, r) => cells.map((element, c) => [element, [r, c]])));
  const line = rows.length === 1 || rows.every((cells) => cells.length === 1);
  const [height, width] = [rows.length, rows[0]?.length ?? 0];
  let current = rows[0][0];
  const enter = (element) => {
    const place = places.get(element);
    if (!place) return;
    current.tabIndex = -1;
    current.removeAttribute("data-active");
    current = element;
    element.tabIndex = 0;
    element.dataset.active = "";
    onActive(...place);
  };
  const target = (event) => {
    for (let node = event.target; node && node !== parent; node = node.parentNode) if (places.has(node)) return node;
    return null;
  };
  const at = (r, c) => rows[Math.min(height - 1, Math.max(0, r))][Math.min(width - 1, Math.max(0, c))];
  parent.addEventListener("focusin", (event) => enter(target(event)));
  parent.addEventListener("pointerover", (event) => enter(target(event)));
  parent.addEventListener("keydown", (event) => {
    const place = places.get(target(event));
    let next;
    if (!place) return;
    const [r, c] = place;
    if (event.key in STEPS) {
      const [down, right] = STEPS[event.key];
      next = line
        ? at(r + (width === 1 ? down + right : 0), c + (width === 1 ? 0 : down + right))
        : at(r + down, c + right);
    } else if (event.key === "Home") next = width === 1 ? at(0, 0) : at(r, 0);
    else if (event.key === "End") next = width === 1 ? at(height, 0) : at(r, width);
    else return;
    event.preventDefault();
    next.focus();
  });
  for (const element of rows.flat()) element.tabIndex = element === current ? 0 : -1;
  return { select: (r, c) => enter(at(r, c)) };
}

/**
 * A table of coloured cells that arrow keys walk through.
 * @param {object} options `caption` and `corner`: texts; `rows` and `columns`: headers; `cell(r, c)`: {text, p, label},
 *   p in 0…1 being the colour and `label` what is read aloud; `onActive(r, c)`; `start`: the cell that is shown first;
 *   `kind`: class of the table
 */
export function heatMap({ caption, corner, rows, columns, cell, onActive, start, kind }) {
  const cells = rows.map((_, r) =>
    columns.map((_, c) => {
      const { text, p, label } = cell(r, c);
      return h("td", { css: { "--p": `${100 * clamp(p)}%` }, "aria-label": label }, text);
    }),
  );
  const table = h(
    "table",
    { role: "grid", class: `heat ${kind}`, "aria-label": caption },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, corner),
        columns.map((name) => h("th", { scope: "col", title: name }, h("span", {}, name))),
      ),
    ),
    h(
      "tbody",
      {},
      cells.map((line, r) => h("tr", {}, h("th", { scope: "row", title: rows[r] }, h("span", {}, rows[r])), line)),
    ),
  );
  const { select: pick } = roving(table, cells, onActive);
  pick(...start);
  const box = h("div", { class: "scroll" }, table);
  // Once it stands on the page: the first cell shown may be far to the right.
  requestAnimationFrame(() => {
    box.scrollLeft = cells[start[0]][start[1]].offsetLeft - box.clientWidth / 2;
  });
  return box;
}

/** Copies a text; true if it is on the clipboard. Without https the browser has only the older way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text, class: "hidden", "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
