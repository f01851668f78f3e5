// All organizations that the token opens, those first that need somebody.

import { get, LoggedOut } from "./api.js";
import { make, put, table, told } from "./elements.js";
import { counted, number, when } from "./formats.js";
import { isForOthers, problem } from "./panels.js";
import { badge, otherChecks, STATES, stateOf } from "./standings.js";

const ORGANIZATIONS_A_PAGE = 200;
const MOST_PAGES = 50;
const ROWS_A_STEP = 100;
const SEARCHED_ABOVE = 10;

export async function showOverview(main, { signal, onLoggedOut }) {
  document.title = "Organizations · Cliniko pipeline";
  let rows = [];
  let shown = ROWS_A_STEP;
  let isComplete = false;
  const summary = make("p", { class: "summary", role: "status" }, "Loading …");
  const list = make("div", { class: "panel wide" });
  const search = make("input", { type: "search", id: "search", autocomplete: "off", oninput: () => { shown = ROWS_A_STEP; drawList(); } });
  const searching = make("p", { class: "search", hidden: true }, make("label", { for: "search" }, "Search by name or id"), search);
  const again = make("button", { type: "button", class: "quiet", onclick: () => load() }, "Reload");
  main.replaceChildren(
    make("div", { class: "heading" }, make("h1", { tabindex: -1 }, "Organizations"), again), summary, searching, list,
  );

  function drawList() {
    const wanted = search.value.trim().toLowerCase();
    const found = rows.filter((each) => wanted === "" || `${each.name}\n${each.id}`.toLowerCase().includes(wanted));
    const states = Object.keys(STATES).map((state) => [state, found.filter((each) => each.state === state).length]);
    const words = states.filter(([, count]) => count > 0).map(([state, count]) => `${number(count)} ${STATES[state].word}`);
    const some = isComplete ? "" : " so far";
    summary.textContent = `${counted(found.length, "organization")}${some}${words.length ? `: ${words.join(", ")}` : ""}.`;
    searching.hidden = rows.length <= SEARCHED_ABOVE;
    const more = make("button", { type: "button", onclick: showMore }, `Show ${Math.min(found.length - shown, ROWS_A_STEP)} more`);
    list.replaceChildren(
      found.length > 0
        ? table("Organizations", COLUMNS, found.slice(0, shown))
        : make("p", { class: "faint" }, wanted === "" ? NONE : "No organization is called that."),
    );
    if (found.length > shown) put(list, make("p", { class: "paging" }, more));
  }

  function showMore() {
    const first = shown;
    shown += ROWS_A_STEP;
    drawList();
    list.querySelectorAll("tbody a")[first]?.focus();
  }

  async function load() {
    const found = [];
    isComplete = false;
    again.disabled = true;
    try {
      let cursor = null;
      for (let pages = 0; pages < MOST_PAGES; pages += 1) {
        const page = await get("v1/organizations", { limit: ORGANIZATIONS_A_PAGE, cursor }, { signal });
        found.push(...page.items.map((each) => ({ ...each, state: stateOf(each) })));
        cursor = page.next_cursor;
        isComplete = cursor === null;
        rows = [...found].sort((one, other) => STATES[one.state].rank - STATES[other.state].rank || one.name.localeCompare(other.name));
        drawList();
        if (isComplete) break;
      }
    } catch (error) {
      if (error instanceof LoggedOut) onLoggedOut(error);
      if (isForOthers(error, signal)) return;
      summary.textContent = rows.length > 0 ? "Not all could be loaded." : "";
      list.replaceChildren(problem(error, load));
    } finally {
      again.disabled = false;
    }
  }

  await load();
}

const NONE = "This token opens no organization that has Cliniko credentials.";

const COLUMNS = [
  {
    title: "Name",
    heading: true,
    cell: (each) => make("a", { href: `#/organizations/${encodeURIComponent(each.id)}` }, told(each.name)),
  },
  { title: "Id", cell: (each) => make("code", {}, told(each.id)) },
  {
    title: "State",
    cell: (each) => {
      const checks = otherChecks(each);
      return [
        badge(each.state),
        each.failures > 1 && make("span", { class: "aside" }, ` ${number(each.failures)} syncs in a row`),
        checks.length > 0 && make("span", { class: "aside", title: checks.join("\n") }, ` ${counted(checks.length, "check")} not held`),
      ];
    },
  },
  { title: "Last success", cell: (each) => when(each.last_success_at) },
];
