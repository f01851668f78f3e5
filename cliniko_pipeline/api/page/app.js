// The login, the choice of the view, and everything that all views share.

import { forgetToken, get, hasToken, LoggedOut, retryNow, storeToken } from "./api.js";
import { make } from "./elements.js";
import { refreshTimes } from "./formats.js";
import { showOrganization } from "./organization.js";
import { showOverview } from "./overview.js";
import { makeProblem } from "./panels.js";

const ORGANIZATION = /^#\/organizations\/([^/]+)$/;

const main = document.getElementById("main");
const logOut = document.getElementById("log-out");
let view = new AbortController();

function show({ message = null, hasMoved = true } = {}) {
  view.abort(new DOMException("Another view is shown.", "AbortError"));
  view = new AbortController();
  const { signal } = view;
  const dialog = document.getElementById("question");
  if (dialog.open) dialog.close();
  logOut.hidden = !hasToken();
  if (!hasToken()) {
    showLogin(signal, message);
    return;
  }
  const options = { signal, onLoggedOut: (error) => show({ message: error.message }) };
  const organization = ORGANIZATION.exec(location.hash);
  const id = organization === null ? null : decode(organization[1]);
  if (id !== null) showOrganization(main, { id, ...options });
  else if (["", "#", "#/"].includes(location.hash)) showOverview(main, options);
  else showNotFound();
  if (hasMoved) {
    window.scrollTo(0, 0);
    main.querySelector("h1")?.focus();
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function showNotFound() {
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
  const alert = make("div", { role: "alert" }, message && make("p", { class: "notice bad" }, message));
  const button = make("button", { type: "submit", class: "main" }, "Log in");
  const form = make("form", { class: "panel login", onsubmit: logIn },
    make("h1", { tabindex: -1 }, "Log in"),
    alert,
    make("label", { for: "token" }, "Token"),
    field,
    make("p", { class: "faint", id: "token-about" }, "The operator creates tokens with ", make("code", {}, "cliniko-pipeline tokens create"),
      ". The token stays in this tab until you log out or close it."),
    button,
  );
  main.replaceChildren(form);
  field.focus();

  async function logIn(event) {
    event.preventDefault();
    alert.replaceChildren();
    if (!storeToken(field.value)) {
      showAlert(make("p", { class: "notice bad" }, "This is not a token: copy the complete line that the command printed."));
      return;
    }
    button.disabled = true;
    try {
      await get("v1/organizations", { limit: 1 }, { signal });
      show();
    } catch (error) {
      if (signal.aborted) return;
      forgetToken();
      showAlert(error instanceof LoggedOut ? make("p", { class: "notice bad" }, error.message) : makeProblem(error));
    } finally {
      button.disabled = false;
    }
  }

  function showAlert(node) {
    alert.replaceChildren(node);
    field.focus();
    field.select();
  }
}

logOut.addEventListener("click", () => {
  forgetToken();
  show({ message: null });
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("waiting-now").addEventListener("click", retryNow);
window.addEventListener("hashchange", () => show());
refreshTimes();
show({ hasMoved: false });
