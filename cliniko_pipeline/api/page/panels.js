// Sections of a view. Each section loads by itself, so a section that fails shows its problem and the rest still work.

import { LoggedOut } from "./api.js";
import { make } from "./elements.js";

/** Returns whether an error needs no message, because another view is shown. Shows the login if the token was refused. */
export function isHandled(error, { signal, onLoggedOut }) {
  if (error instanceof LoggedOut) onLoggedOut(error);
  return signal.aborted || error.name === "AbortError" || error instanceof LoggedOut;
}

/** Makes the notice of an error, with a button if it can be retried. */
export function makeProblem(error, retry = null) {
  const what = error.status === undefined ? "The page has a defect: tell the operator." : error.message;
  if (error.status === undefined) console.error(error);
  return make("div", { class: "notice bad", role: "alert" },
    make("p", {}, what),
    retry && make("button", { type: "button", onclick: retry }, "Try again"),
  );
}

/**
 * A section with a heading. `show(load, render)` fills the section: `load` returns data of the API, and `render` makes
 * nodes of the data. A later call replaces an earlier one that is still loading.
 */
export class Panel {
  #calls = 0;

  constructor(title, signal, onLoggedOut, { wide = false } = {}) {
    const id = `section-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
    this.heading = make("h2", { id }, title);
    this.content = make("div", { class: "content", "aria-busy": "true" }, make("p", { class: "faint" }, "Loading …"));
    this.node = make("section", { class: wide ? "panel wide" : "panel", "aria-labelledby": id }, this.heading, this.content);
    this.signal = signal;
    this.onLoggedOut = onLoggedOut;
  }

  async show(load, render) {
    this.#calls += 1;
    const call = this.#calls;
    this.content.setAttribute("aria-busy", "true");
    let nodes;
    try {
      nodes = [render(await load())].flat();
    } catch (error) {
      if (isHandled(error, this)) return;
      nodes = [makeProblem(error, () => this.show(load, render))];
    }
    if (call !== this.#calls || this.signal.aborted) return;
    this.content.replaceChildren(...nodes.filter((node) => node !== null));
    this.content.removeAttribute("aria-busy");
  }
}
