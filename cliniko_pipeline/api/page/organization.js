// One organization: how it stands, its charts, its syncs, its active patients, and people without a contact.

import { csv, get, LoggedOut, organizationPath } from "./api.js";
import { axisOf, barChart, lineChart } from "./charts.js";
import { make, table, told } from "./elements.js";
import { counted, exact, number, relative, sentence, when } from "./formats.js";
import { isForOthers, Panel, problem } from "./panels.js";
import { isOld } from "./standings.js";
import { isGoingOn, SyncControl, syncTable } from "./syncs.js";

const ROWS_A_PAGE = { wide: 25, narrow: 10 };
const NARROW = matchMedia("(max-width: 40rem)");
const SYNCS_SHOWN = 10;
const TREND_DAYS = 90;
const CHARTED_A_PAGE = 1000;
const PAGES_CHARTED = 2;
const MOST_APART = 9;

export async function showOrganization(main, { id, signal, onLoggedOut }) {
  document.title = `${id} · Cliniko pipeline`;
  const path = (rest) => organizationPath(id, rest);
  const ask = (rest, query) => get(path(rest), query, { signal });
  const back = make("p", { class: "back" }, make("a", { href: "#/" }, "All organizations"));
  const heading = make("h1", { tabindex: -1 }, told(id));
  const lead = make("p", { class: "lead" }, "Loading …");
  const control = new SyncControl(id, { signal, onLoggedOut, onEnded: () => loadAll() });
  const actions = make("div", { class: "actions" }, control.buttons, control.why);
  const panel = (title, options) => new Panel(title, signal, onLoggedOut, options);
  const problems = panel("Problems", { wide: true });
  const counts = panel("Counts", { wide: true });
  const trend = panel("Active patients over time");
  const spread = panel("Recent appointments");
  const syncs = panel("Last syncs", { wide: true });
  const patients = panel("Active patients", { wide: true });
  const people = panel("People without a contact", { wide: true });
  const rest = make("div", { class: "grid" });
  main.replaceChildren(
    make("div", { class: "heading" }, make("div", {}, back, heading, lead), actions), control.node, rest,
  );

  const showPatients = activePatients(patients, { ask, path, id, signal, onLoggedOut });
  const showPeople = peopleWithout(people, ask);

  async function loadStanding() {
    const standing = await ask("");
    document.title = `${standing.name} · Cliniko pipeline`;
    heading.replaceChildren(told(standing.name));
    lead.replaceChildren(make("code", {}, told(standing.id)), " · last success ", when(standing.last_success_at));
    if (!standing.is_active) {
      lead.append(" · disabled");
      control.disable("The organization is disabled, so it is not synced: the operator can enable it.");
    }
    problems.show(() => [...ageProblems(standing), ...standing.problems], drawnProblems);
    counts.show(() => standing.counts, drawnCounts);
  }

  async function loadSyncs() {
    await syncs.show(() => ask("/syncs", { limit: SYNCS_SHOWN }), (page) => {
      // One that was requested elsewhere, or before this was opened.
      const goingOn = page.items.find(isGoingOn);
      if (goingOn !== undefined) control.follow(goingOn.id);
      return syncTable(page.items);
    });
  }

  async function loadAll() {
    try {
      await loadStanding();
    } catch (error) {
      if (error instanceof LoggedOut) onLoggedOut(error);
      if (isForOthers(error, signal)) return;
      lead.replaceChildren();
      actions.hidden = true;
      rest.replaceChildren(problem(error, loadAll));
      return;
    }
    actions.hidden = false;
    if (!syncs.node.isConnected) {
      const each = [problems, counts, trend, spread, syncs, patients, people];
      rest.replaceChildren(...each.map((one) => one.node));
    }
    const days = { days: TREND_DAYS };
    await Promise.all([
      loadSyncs(),
      trend.show(() => ask("/active-patients-trend", days), drawnTrend),
      spread.show(() => firstPatients(ask), drawnSpread),
      showPatients(),
      showPeople(),
    ]);
  }

  await loadAll();
}

/** What the API tells as an age, and somebody should look at all the same: where no daemon runs, nothing notes it. */
function ageProblems({ is_active: isActive, last_success_at: last }) {
  if (!isActive) return ["It is disabled: it is not synced."];
  if (last === null) return ["It was not synced yet, or never whole."];
  return isOld(last) ? [`What is shown is old: the last sync that succeeded was ${relative(new Date(last))}.`] : [];
}

function drawnProblems(found) {
  if (found.length === 0) return make("p", { class: "fine" }, make("span", { "aria-hidden": "true" }, "✓ "), "Nothing to look at.");
  return make("ul", { class: "problems" }, found.map((each) => make("li", {}, told(sentence(each)))));
}

const COUNTS = [
  ["active_patients", "Active patients"],
  ["patients", "Patients"],
  ["appointments", "Appointments"],
  ["attendees", "Attendees"],
  ["matched", "Matched people"],
  ["unmatched", "Unmatched"],
  ["ambiguous", "Ambiguous"],
  ["rejected_records", "Rejected records"],
];

function drawnCounts(counts) {
  const tiles = COUNTS.map(([key, title]) => make("div", {}, make("dt", {}, title), make("dd", {}, number(counts[key]))));
  return make("dl", { class: "tiles" }, tiles);
}

function drawnTrend(trend) {
  const points = trend.items.map((each) => ({ day: each.day, value: each.active_patients }));
  const chart = lineChart("Active patients at the end of each day", points, "Active patients");
  const isGappy = points.some((each, i) => i > 0 && Date.parse(each.day) - Date.parse(points[i - 1].day) > 86400000);
  const note = isGappy ? " A dashed line spans days without a sync." : "";
  const isLifted = points.length > 0 && axisOf(points.map((each) => each.value)).low > 0;
  const axis = isLifted ? " The axis does not begin at zero." : "";
  return [make("p", { class: "faint" }, `At the end of each day with a sync, the last ${TREND_DAYS} days.${note}${axis}`), chart];
}

const rowsAPage = () => (NARROW.matches ? ROWS_A_PAGE.narrow : ROWS_A_PAGE.wide);

/** Those who came last, as many as fit into the first pages. */
async function firstPatients(ask) {
  const found = [];
  let cursor = null;
  for (let page = 0; page < PAGES_CHARTED; page += 1) {
    const read = await ask("/active-patients", { limit: CHARTED_A_PAGE, cursor });
    found.push(...read.items);
    cursor = read.next_cursor;
    if (cursor === null) break;
  }
  return { items: found, isAll: cursor === null };
}

function drawnSpread({ items, isAll }) {
  const values = new Map();
  for (const each of items) {
    const kind = Math.min(each.recent_appointment_count, MOST_APART + 1);
    values.set(kind, (values.get(kind) ?? 0) + 1);
  }
  const longest = Math.max(...values.keys(), 4);
  const bars = Array.from({ length: longest }, (_, i) => ({
    label: i === MOST_APART ? `${MOST_APART + 1}+` : String(i + 1),
    value: values.get(i + 1) ?? 0,
  }));
  const whom = isAll ? "All active patients" : `Only the ${number(items.length)} active patients who came last`;
  return [
    make("p", { class: "faint" }, `${whom}, by their number of recent appointments.`),
    barChart("Active patients by recent appointments", bars, ["Recent appointments", "Active patients"]),
  ];
}

const SORTS = [
  ["last_appointment_date desc", "Last appointment, latest first"],
  ["last_appointment_date asc", "Last appointment, earliest first"],
  ["recent_appointment_count desc", "Most recent appointments"],
  ["upcoming_appointment_count desc", "Most upcoming appointments"],
  ["total_appointment_count desc", "Most appointments at all"],
  ["total_appointment_count asc", "Fewest appointments at all"],
  ["contact_id asc", "Contact id"],
];
const UPCOMING = [["", "All"], ["true", "With an upcoming appointment"], ["false", "Without one"]];

function choice(id, label, options, onchange) {
  const select = make("select", { id, onchange }, options.map(([value, text]) => make("option", { value }, text)));
  return { select, node: make("p", { class: "choice" }, make("label", { for: id }, label), select) };
}

/** The list with its choices; returns what shows it from the first page. */
function activePatients(panel, { ask, path, id, signal, onLoggedOut }) {
  const sorted = choice("sort", "Sort by", SORTS, () => first());
  const filtered = choice("upcoming", "Show", UPCOMING, () => first());
  const download = make("button", { type: "button", onclick: () => save() }, "Download CSV");
  const status = make("p", { class: "faint", role: "status" });
  const bar = make("div", { class: "choices" }, sorted.node, filtered.node, download);
  panel.heading.after(bar, status);

  const query = () => {
    const [sort, order] = sorted.select.value.split(" ");
    return { sort, order, has_upcoming: filtered.select.value };
  };
  const pages = paged(panel, (cursor) => ask("/active-patients", { ...query(), limit: rowsAPage(), cursor }), (items) =>
    items.length === 0
      ? make("p", { class: "faint" }, "None.")
      : table("Active patients", PATIENT_COLUMNS, items),
  );
  const first = () => pages.first();

  async function save() {
    download.disabled = true;
    status.textContent = "The file is made …";
    try {
      const { text, whole } = await csv(path("/active-patients"), { ...query(), limit: CHARTED_A_PAGE }, { signal });
      const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      make("a", { href: url, download: `active-patients-${id.replaceAll(/[^\w.-]/g, "_")}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
      status.textContent = whole ? "The file is made." : "The file is made; it is not whole: there are too many for this page.";
    } catch (error) {
      if (error instanceof LoggedOut) onLoggedOut(error);
      if (isForOthers(error, signal)) return;
      status.textContent = error.message;
    } finally {
      download.disabled = false;
    }
  }

  return first;
}

const PATIENT_COLUMNS = [
  { title: "Contact", heading: true, cell: (each) => make("code", {}, each.contact_id) },
  { title: "Recent", number: true, cell: (each) => number(each.recent_appointment_count) },
  { title: "Upcoming", number: true, cell: (each) => number(each.upcoming_appointment_count) },
  { title: "Total", number: true, cell: (each) => number(each.total_appointment_count) },
  { title: "Last appointment", cell: (each) => lastAppointment(each.last_appointment_date) },
];

function lastAppointment(text) {
  if (text === null) return "";
  const instant = new Date(text);
  return make("time", { datetime: instant.toISOString(), title: exact(instant) }, text.slice(0, 10));
}

const STATUSES = [["unmatched", "Unmatched: no contact could be found"], ["ambiguous", "Ambiguous: more than one could be meant"]];

function peopleWithout(panel, ask) {
  const chosen = choice("without-contact", "Show", STATUSES, () => pages.first());
  panel.heading.after(make("div", { class: "choices" }, chosen.node));
  const query = (cursor) => ({ status: chosen.select.value, limit: rowsAPage(), cursor });
  const pages = paged(panel, (cursor) => ask("/people-without-contact", query(cursor)), (items) =>
    items.length === 0
      ? make("p", { class: "faint" }, "Nobody.")
      : table("People without a contact", PEOPLE_COLUMNS[chosen.select.value], items),
  );
  return () => pages.first();
}

const PATIENT = { title: "Patient in Cliniko", heading: true, cell: (each) => make("code", {}, told(each.patient_id)) };
const CANDIDATES = {
  title: "Contacts it could be",
  number: true,
  cell: (each) => (each.candidate_count === null ? "" : counted(each.candidate_count, "contact")),
};
const PEOPLE_COLUMNS = { unmatched: [PATIENT], ambiguous: [PATIENT, CANDIDATES] };

/** Pages of a list, forwards by the cursors that the API gives and back by those it gave. */
function paged(panel, load, drawn) {
  const cursors = [null];

  async function show(focused = null) {
    await panel.show(() => load(cursors.at(-1)), (page) => {
      const back = make("button", { type: "button", disabled: cursors.length === 1, onclick: () => { cursors.pop(); show("back"); } }, "Previous page");
      const next = make("button", { type: "button", disabled: page.next_cursor === null, onclick: () => { cursors.push(page.next_cursor); show("next"); } }, "Next page");
      const isAlone = cursors.length === 1 && page.next_cursor === null;
      const place = make("span", { class: "faint", role: "status" }, `Page ${number(cursors.length)}`);
      const buttons = isAlone ? null : make("nav", { class: "paging", "aria-label": "Pages" }, back, place, next);
      // What was pressed is drawn anew: the focus stays with it, or goes to the other where it is of no use now.
      const pressed = focused === "next" ? [next, back] : [back, next];
      if (focused !== null) queueMicrotask(() => requestAnimationFrame(() => pressed.find((each) => !each.disabled)?.focus()));
      return [drawn(page.items), buttons];
    });
  }

  return { first: () => { cursors.length = 1; return show(); } };
}
