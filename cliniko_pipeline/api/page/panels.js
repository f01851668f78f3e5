// Parts of a view that load by themselves: one that cannot be loaded says why, and the others go on working.

import { LoggedOut } from "./api.js";
import { make } from "./elements.js";

/** Whether it is none of the view's own business: another view is shown, or nobody is logged in. */
export const isForOthers = (error, signal) => signal.aborted || error.name === "AbortError" || error instanceof LoggedOut;

/** What went wrong, with a button to try again where there is something to try. */
export function problem(error, again = null) {
  const what = error.status === undefined ? "This page could not do that; this is a defect." : error.message;
  if (error.status === undefined) console.error(error);
  return make("div", { class: "notice bad", role: "alert" },
    make("p", {}, what),
    again && make("button", { type: "button", onclick: again }, "Try again"),
  );
}

/**
 * A section with a heading. `show(load, drawn)` fills it: `load` asks the API, `drawn` makes nodes of what it told.
 * Only what was asked for last is shown.
 */
export class Panel {
  #asked = 0;

  constructor(title, signal, onLoggedOut, { wide = false } = {}) {
    const id = `section-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
    this.heading = make("h2", { id }, title);
    this.content = make("div", { class: "content", "aria-busy": "true" }, make("p", { class: "faint" }, "Loading …"));
    this.node = make("section", { class: wide ? "panel wide" : "panel", "aria-labelledby": id }, this.heading, this.content);
    this.signal = signal;
    this.onLoggedOut = onLoggedOut;
  }

  async show(load, drawn) {
    this.#asked += 1;
    const asked = this.#asked;
    this.content.setAttribute("aria-busy", "true");
    let nodes;
    try {
      nodes = [drawn(await load())].flat();
    } catch (error) {
      if (error instanceof LoggedOut) this.onLoggedOut(error);
      if (isForOthers(error, this.signal)) return;
      nodes = [problem(error, () => this.show(load, drawn))];
    }
    if (asked !== this.#asked || this.signal.aborted) return;
    this.content.replaceChildren(...nodes.filter((each) => each !== null));
    this.content.removeAttribute("aria-busy");
  }
}
