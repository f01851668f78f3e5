// The page: who is logged in, which view is shown, and what all views share.

import { forgetToken, get, goOnNow, hasToken, keepToken, LoggedOut } from "./api.js";
import { make } from "./elements.js";
import { keepTimesTrue } from "./formats.js";
import { showOrganization } from "./organization.js";
import { showOverview } from "./overview.js";
import { isForOthers, problem } from "./panels.js";

const ORGANIZATION = /^#\/organizations\/([^/]+)$/;

const main = document.getElementById("main");
const leave = document.getElementById("log-out");
let shown = new AbortController();

function show({ message = null, hasMoved = true } = {}) {
  shown.abort(new DOMException("Another view is shown.", "AbortError"));
  shown = new AbortController();
  const { signal } = shown;
  const dialog = document.getElementById("question");
  if (dialog.open) dialog.close();
  leave.hidden = !hasToken();
  if (!hasToken()) {
    showLogin(signal, message);
    return;
  }
  const options = { signal, onLoggedOut: (error) => show({ message: error.message }) };
  const organization = ORGANIZATION.exec(location.hash);
  const id = organization === null ? null : decoded(organization[1]);
  if (id !== null) showOrganization(main, { id, ...options });
  else if (["", "#", "#/"].includes(location.hash)) showOverview(main, options);
  else showNothing();
  if (hasMoved) {
    window.scrollTo(0, 0);
    main.querySelector("h1")?.focus();
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function showNothing() {
  document.title = "Not found · Cliniko pipeline";
  main.replaceChildren(
    make("h1", { tabindex: -1 }, "There is nothing at this address"),
    make("p", {}, make("a", { href: "#/" }, "All organizations")),
  );
}

function showLogin(signal, message) {
  document.title = "Log in · Cliniko pipeline";
  const field = make("input", {
    type: "password", id: "token", name: "token", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "token-about",
  });
  const told = make("div", { role: "alert" }, message && make("p", { class: "notice bad" }, message));
  const button = make("button", { type: "submit", class: "main" }, "Log in");
  const form = make("form", { class: "panel login", onsubmit: logIn },
    make("h1", { tabindex: -1 }, "Log in"),
    told,
    make("label", { for: "token" }, "Token"),
    field,
    make("p", { class: "faint", id: "token-about" }, "The operator makes one with ", make("code", {}, "cliniko-pipeline tokens create"),
      ". It is kept in this tab only, until you log out or close it."),
    button,
  );
  main.replaceChildren(form);
  field.focus();

  async function logIn(event) {
    event.preventDefault();
    told.replaceChildren();
    if (!keepToken(field.value)) {
      tell(make("p", { class: "notice bad" }, "That is no token: copy the whole line that was printed, and nothing else."));
      return;
    }
    button.disabled = true;
    try {
      await get("v1/organizations", { limit: 1 }, { signal });
      show();
    } catch (error) {
      if (isForOthers(error, signal) && !(error instanceof LoggedOut)) return;
      forgetToken();
      tell(error instanceof LoggedOut ? make("p", { class: "notice bad" }, error.message) : problem(error));
    } finally {
      button.disabled = false;
    }
  }

  function tell(node) {
    told.replaceChildren(node);
    field.focus();
    field.select();
  }
}

leave.addEventListener("click", () => {
  forgetToken();
  show({ message: null });
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("waiting-now").addEventListener("click", goOnNow);
window.addEventListener("hashchange", () => show());
keepTimesTrue();
show({ hasMoved: false });
