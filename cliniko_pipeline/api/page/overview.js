// The organizations that the token may access. Organizations in a bad state come first.

import { get } from "./api.js";
import { isolate, make, makeTable, put } from "./elements.js";
import { count, makeTime, number } from "./formats.js";
import { isHandled, makeProblem } from "./panels.js";
import { makeBadge, otherFailedChecks, STATES, stateOf } from "./states.js";

const ORGANIZATIONS_PER_PAGE = 200;
const MAX_PAGES = 50;
const ROWS_PER_STEP = 100;
const MIN_ROWS_WITH_SEARCH = 10;

export async function showOverview(main, { signal, onLoggedOut }) {
  document.title = "Organizations · Cliniko pipeline";
  let rows = [];
  let shown = ROWS_PER_STEP;
  let isComplete = false;
  const summary = make("p", { class: "summary", role: "status" }, "Loading …");
  const list = make("div", { class: "panel wide" });
  const search = make("input", { type: "search", id: "search", autocomplete: "off", oninput: () => { shown = ROWS_PER_STEP; showList(); } });
  const searching = make("p", { class: "search", hidden: true }, make("label", { for: "search" }, "Search by name or id"), search);
  const reload = make("button", { type: "button", class: "quiet", onclick: () => load() }, "Reload");
  main.replaceChildren(
    make("div", { class: "heading" }, make("h1", { tabindex: -1 }, "Organizations"), reload), summary, searching, list,
  );

  function showList() {
    const wanted = search.value.trim().toLowerCase();
    const found = rows.filter((row) => wanted === "" || `${row.name}\n${row.id}`.toLowerCase().includes(wanted));
    const states = Object.keys(STATES).map((state) => [state, found.filter((row) => row.state === state).length]);
    const words = states.filter(([, total]) => total > 0).map(([state, total]) => `${number(total)} ${STATES[state].word}`);
    const some = isComplete ? "" : " so far";
    summary.textContent = `${count(found.length, "organization")}${some}${words.length ? `: ${words.join(", ")}` : ""}.`;
    searching.hidden = rows.length <= MIN_ROWS_WITH_SEARCH;
    const more = make("button", { type: "button", onclick: showMore }, `Show ${Math.min(found.length - shown, ROWS_PER_STEP)} more`);
    list.replaceChildren(
      found.length > 0
        ? makeTable("Organizations", COLUMNS, found.slice(0, shown))
        : make("p", { class: "faint" }, wanted === "" ? NONE : "No organization has this name or id."),
    );
    if (found.length > shown) put(list, make("p", { class: "paging" }, more));
  }

  function showMore() {
    const first = shown;
    shown += ROWS_PER_STEP;
    showList();
    list.querySelectorAll("tbody a")[first]?.focus();
  }

  async function load() {
    const found = [];
    isComplete = false;
    reload.disabled = true;
    try {
      let cursor = null;
      for (let pages = 0; pages < MAX_PAGES; pages += 1) {
        const page = await get("v1/organizations", { limit: ORGANIZATIONS_PER_PAGE, cursor }, { signal });
        found.push(...page.items.map((item) => ({ ...item, state: stateOf(item) })));
        cursor = page.next_cursor;
        isComplete = cursor === null;
        rows = [...found].sort((one, other) => STATES[one.state].rank - STATES[other.state].rank || one.name.localeCompare(other.name));
        showList();
        if (isComplete) break;
      }
    } catch (error) {
      if (isHandled(error, { signal, onLoggedOut })) return;
      summary.textContent = rows.length > 0 ? "Not all organizations could be loaded." : "";
      list.replaceChildren(makeProblem(error, load));
    } finally {
      reload.disabled = false;
    }
  }

  await load();
}

const NONE = "This token may not access any organization with Cliniko credentials.";

const COLUMNS = [
  {
    title: "Name",
    heading: true,
    cell: (row) => make("a", { href: `#/organizations/${encodeURIComponent(row.id)}` }, isolate(row.name)),
  },
  { title: "Id", cell: (row) => make("code", {}, isolate(row.id)) },
  {
    title: "State",
    cell: (row) => {
      const checks = otherFailedChecks(row);
      return [
        makeBadge(row.state),
        row.failures > 1 && make("span", { class: "aside" }, ` ${number(row.failures)} syncs in a row`),
        checks.length > 0 && make("span", { class: "aside", title: checks.join("\n") }, ` ${count(checks.length, "failed check")}`),
      ];
    },
  },
  { title: "Verified", cell: (row) => makeTime(row.verified_at) },
];
