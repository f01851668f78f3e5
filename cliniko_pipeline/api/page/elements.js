// DOM elements made of text. Texts of the API never become markup, because they may be hostile.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an HTML element. Children are nodes or texts; null and false are skipped. `onclick` and the like are functions. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Makes an SVG element. */
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

/** Isolates a text of the API, so that its right-to-left marks do not reorder the text around it. */
export function isolate(text) {
  return make("bdi", {}, text);
}

/** Makes a link to an address from the API, or only the label if the address is not http or https. */
export function makeLink(address, label) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // Without a valid address, only the label is shown.
  }
  if (url === null || !["http:", "https:"].includes(url.protocol)) return make("span", {}, label);
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, label);
}

/**
 * Makes a table that becomes a list of cards on narrow screens. Roles are set because the cards' CSS removes the
 * implicit ones. A column is {title, cell(row), number, heading}.
 */
export function makeTable(caption, columns, rows) {
  const head = columns.map((column) =>
    make("th", { scope: "col", role: "columnheader", class: column.number && "number" }, column.title),
  );
  const body = rows.map((row) =>
    make("tr", { role: "row" }, columns.map((column) => {
      const attributes = { "data-title": column.title, class: column.number && "number" };
      return column.heading
        ? make("th", { ...attributes, scope: "row", role: "rowheader" }, make("div", {}, column.cell(row)))
        : make("td", { ...attributes, role: "cell" }, make("div", {}, column.cell(row)));
    })),
  );
  return make("table", { role: "table", class: "cards" },
    make("caption", {}, caption),
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, head)),
    make("tbody", { role: "rowgroup" }, body),
  );
}

/** Asks in a dialog, and returns whether the answer is yes. */
export function askConfirmation(title, text, yes) {
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
    // Escape was pressed, or another view is shown.
    dialog.addEventListener("close", () => close(false), { signal: answers.signal });
    dialog.showModal();
    refuse.focus();
  });
}
