// Elements made of text. Whatever the API tells may be hostile: here nothing of it ever becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; children are nodes or texts, and null and false are left out. `onclick` and the like are functions. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  put(element, ...children);
  return element;
}

/** Appends children. */
export function put(element, ...children) {
  for (const child of children.flat(2)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Text from outside, kept from turning around what stands beside it (right-to-left marks). */
export function told(text) {
  return make("bdi", {}, text);
}

/** A link to an address that the API told; no link where it is none of http. */
export function linkOut(address, label) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // Shown as text below.
  }
  if (url === null || !["http:", "https:"].includes(url.protocol)) return make("span", {}, label);
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, label);
}

/**
 * A table that becomes a list of cards on narrow screens; its roles are written out, since those get lost there.
 * Columns: {title, cell(row), number, heading}.
 */
export function table(caption, columns, rows) {
  const head = columns.map((each) =>
    make("th", { scope: "col", role: "columnheader", class: each.number && "number" }, each.title),
  );
  const body = rows.map((row) =>
    make("tr", { role: "row" }, columns.map((each) => {
      const attributes = { "data-title": each.title, class: each.number && "number" };
      return each.heading
        ? make("th", { ...attributes, scope: "row", role: "rowheader" }, make("div", {}, each.cell(row)))
        : make("td", { ...attributes, role: "cell" }, make("div", {}, each.cell(row)));
    })),
  );
  return make("table", { role: "table", class: "cards" },
    make("caption", {}, caption),
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, head)),
    make("tbody", { role: "rowgroup" }, body),
  );
}

/** Asks in a dialog; true where the answer is yes. */
export function ask(title, text, yes) {
  const dialog = document.getElementById("question");
  document.getElementById("question-title").textContent = title;
  document.getElementById("question-text").textContent = text;
  const agree = document.getElementById("question-yes");
  const refuse = document.getElementById("question-no");
  agree.textContent = yes;
  return new Promise((resolve) => {
    const answers = new AbortController();
    const close = (answer) => {
      answers.abort();
      if (dialog.open) dialog.close();
      resolve(answer);
    };
    agree.addEventListener("click", () => close(true), { signal: answers.signal });
    refuse.addEventListener("click", () => close(false), { signal: answers.signal });
    // Escape, and the view going away.
    dialog.addEventListener("close", () => close(false), { signal: answers.signal });
    dialog.showModal();
    refuse.focus();
  });
}
