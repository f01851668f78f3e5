// One organization: problems, counts, charts, syncs, active patients, and patients without a contact.

import { get, loadCsv, organizationPath } from "./api.js";
import { chooseAxis, makeBarChart, makeLineChart } from "./charts.js";
import { isolate, make, makeTable } from "./elements.js";
import { capitalize, count, exact, makeTime, number, relative } from "./formats.js";
import { isHandled, makeProblem, Panel } from "./panels.js";
import { isOld } from "./states.js";
import { isUnfinished, makeSyncTable, SyncControl } from "./syncs.js";

const ROWS_PER_PAGE = { wide: 25, narrow: 10 };
const NARROW = matchMedia("(max-width: 40rem)");
const SYNCS_SHOWN = 10;
const TREND_DAYS = 90;
const CHART_PAGE_ROWS = 1000;
const MAX_CHART_PAGES = 2;
const MAX_SINGLE_BAR = 9;

export async function showOrganization(main, { id, signal, onLoggedOut }) {
  document.title = `${id} · Cliniko pipeline`;
  const path = (rest) => organizationPath(id, rest);
  const load = (rest, query) => get(path(rest), query, { signal });
  const back = make("p", { class: "back" }, make("a", { href: "#/" }, "All organizations"));
  const heading = make("h1", { tabindex: -1 }, isolate(id));
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
  const people = panel("Patients without a contact", { wide: true });
  const rest = make("div", { class: "grid" });
  main.replaceChildren(
    make("div", { class: "heading" }, make("div", {}, back, heading, lead), actions), control.node, rest,
  );

  const showPatients = fillActivePatients(patients, { load, path, id, signal, onLoggedOut });
  const showPeople = fillPeople(people, load);

  async function loadOrganization() {
    const organization = await load("");
    document.title = `${organization.name} · Cliniko pipeline`;
    heading.replaceChildren(isolate(organization.name));
    lead.replaceChildren(make("code", {}, isolate(organization.id)), " · verified ", makeTime(organization.verified_at));
    if (!organization.is_active) {
      lead.append(" · disabled");
      control.disable("The organization is disabled: ask the operator to enable it.");
    }
    problems.show(() => [...ageProblems(organization), ...organization.problems], renderProblems);
    counts.show(() => organization.counts, renderCounts);
  }

  async function loadSyncs() {
    await syncs.show(() => load("/syncs", { limit: SYNCS_SHOWN }), (page) => {
      // The unfinished sync may have been requested elsewhere, or before the page was opened.
      const unfinished = page.items.find(isUnfinished);
      if (unfinished !== undefined) control.follow(unfinished.id);
      return makeSyncTable(page.items);
    });
  }

  async function loadAll() {
    try {
      await loadOrganization();
    } catch (error) {
      if (isHandled(error, { signal, onLoggedOut })) return;
      lead.replaceChildren();
      actions.hidden = true;
      rest.replaceChildren(makeProblem(error, loadAll));
      return;
    }
    actions.hidden = false;
    if (!syncs.node.isConnected) {
      const panels = [problems, counts, trend, spread, syncs, patients, people];
      rest.replaceChildren(...panels.map(({ node }) => node));
    }
    const days = { days: TREND_DAYS };
    await Promise.all([
      loadSyncs(),
      trend.show(() => load("/active-patients-trend", days), renderTrend),
      spread.show(() => loadLatestPatients(load), renderSpread),
      showPatients(),
      showPeople(),
    ]);
  }

  await loadAll();
}

/** Returns the problems of old data. The API reports such problems only while Dagster's daemon runs. */
function ageProblems({ is_active: isActive, verified_at: last }) {
  if (!isActive) return ["The organization is disabled: it is not synced."];
  if (last === null) return ["There was no successful sync yet."];
  return isOld(last) ? [`The data are old: they were last verified ${relative(new Date(last))}.`] : [];
}

function renderProblems(found) {
  if (found.length === 0) return make("p", { class: "fine" }, make("span", { "aria-hidden": "true" }, "✓ "), "No problems.");
  return make("ul", { class: "problems" }, found.map((text) => make("li", {}, isolate(capitalize(text)))));
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

function renderCounts(counts) {
  const tiles = COUNTS.map(([key, title]) => make("div", {}, make("dt", {}, title), make("dd", {}, number(counts[key]))));
  return make("dl", { class: "tiles" }, tiles);
}

function renderTrend(trend) {
  const points = trend.items.map((item) => ({ day: item.day, value: item.active_patients }));
  const chart = makeLineChart("Active patients at the end of each day", points, "Active patients");
  const isGappy = points.some((point, i) => i > 0 && Date.parse(point.day) - Date.parse(points[i - 1].day) > 86400000);
  const note = isGappy ? " A dashed line spans days without a sync." : "";
  const isLifted = points.length > 0 && chooseAxis(points.map((point) => point.value)).low > 0;
  const axis = isLifted ? " The axis does not start at zero." : "";
  return [make("p", { class: "faint" }, `At the end of each day with a sync, in the last ${TREND_DAYS} days.${note}${axis}`), chart];
}

const rowsPerPage = () => (NARROW.matches ? ROWS_PER_PAGE.narrow : ROWS_PER_PAGE.wide);

/** Loads the patients with the latest appointments, at most MAX_CHART_PAGES pages. */
async function loadLatestPatients(load) {
  const found = [];
  let cursor = null;
  for (let page = 0; page < MAX_CHART_PAGES; page += 1) {
    const result = await load("/active-patients", { limit: CHART_PAGE_ROWS, cursor });
    found.push(...result.items);
    cursor = result.next_cursor;
    if (cursor === null) break;
  }
  return { items: found, isAll: cursor === null };
}

function renderSpread({ items, isAll }) {
  const values = new Map();
  for (const patient of items) {
    const kind = Math.min(patient.recent_appointment_count, MAX_SINGLE_BAR + 1);
    values.set(kind, (values.get(kind) ?? 0) + 1);
  }
  const longest = Math.max(...values.keys(), 4);
  const bars = Array.from({ length: longest }, (_, i) => ({
    label: i === MAX_SINGLE_BAR ? `${MAX_SINGLE_BAR + 1}+` : String(i + 1),
    value: values.get(i + 1) ?? 0,
  }));
  const scope = isAll ? "All active patients" : `The ${number(items.length)} active patients with the latest appointments`;
  return [
    make("p", { class: "faint" }, `${scope}, by their number of recent appointments.`),
    makeBarChart("Active patients by recent appointments", bars, ["Recent appointments", "Active patients"]),
  ];
}

const SORTS = [
  ["last_appointment_date desc", "Last appointment, latest first"],
  ["last_appointment_date asc", "Last appointment, earliest first"],
  ["recent_appointment_count desc", "Most recent appointments"],
  ["upcoming_appointment_count desc", "Most upcoming appointments"],
  ["total_appointment_count desc", "Most appointments in total"],
  ["total_appointment_count asc", "Fewest appointments in total"],
  ["contact_id asc", "Contact id"],
];
const UPCOMING = [["", "All"], ["true", "With an upcoming appointment"], ["false", "Without an upcoming appointment"]];

function makeChoice(id, label, options, onchange) {
  const select = make("select", { id, onchange }, options.map(([value, text]) => make("option", { value }, text)));
  return { select, node: make("p", { class: "choice" }, make("label", { for: id }, label), select) };
}

/** Fills the panel. Returns a function that shows the first page. */
function fillActivePatients(panel, { load, path, id, signal, onLoggedOut }) {
  const sorted = makeChoice("sort", "Sort by", SORTS, () => first());
  const filtered = makeChoice("upcoming", "Show", UPCOMING, () => first());
  const download = make("button", { type: "button", onclick: () => save() }, "Download CSV");
  const status = make("p", { class: "faint", role: "status" });
  const bar = make("div", { class: "choices" }, sorted.node, filtered.node, download);
  panel.heading.after(bar, status);

  const query = () => {
    const [sort, order] = sorted.select.value.split(" ");
    return { sort, order, has_upcoming: filtered.select.value };
  };
  const pages = makePages(panel, (cursor) => load("/active-patients", { ...query(), limit: rowsPerPage(), cursor }), (items) =>
    items.length === 0
      ? make("p", { class: "faint" }, "None.")
      : makeTable("Active patients", PATIENT_COLUMNS, items),
  );
  const first = () => pages.first();

  async function save() {
    download.disabled = true;
    status.textContent = "Preparing the file …";
    try {
      const { text, isComplete } = await loadCsv(path("/active-patients"), { ...query(), limit: CHART_PAGE_ROWS }, { signal });
      const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      make("a", { href: url, download: `active-patients-${id.replaceAll(/[^\w.-]/g, "_")}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
      status.textContent = isComplete ? "The file is ready." : "The file is incomplete: there are too many patients for this page. Use the API.";
    } catch (error) {
      if (isHandled(error, { signal, onLoggedOut })) return;
      status.textContent = error.message;
    } finally {
      download.disabled = false;
    }
  }

  return first;
}

const PATIENT_COLUMNS = [
  { title: "Contact", heading: true, cell: (patient) => make("code", {}, patient.contact_id) },
  { title: "Recent", number: true, cell: (patient) => number(patient.recent_appointment_count) },
  { title: "Upcoming", number: true, cell: (patient) => number(patient.upcoming_appointment_count) },
  { title: "Total", number: true, cell: (patient) => number(patient.total_appointment_count) },
  { title: "Last appointment", cell: (patient) => makeDate(patient.last_appointment_date) },
];

function makeDate(text) {
  if (text === null) return "";
  const instant = new Date(text);
  return make("time", { datetime: instant.toISOString(), title: exact(instant) }, text.slice(0, 10));
}

const STATUSES = [["unmatched", "Unmatched: no contact found"], ["ambiguous", "Ambiguous: more than one possible contact"]];

function fillPeople(panel, load) {
  const chosen = makeChoice("without-contact", "Show", STATUSES, () => pages.first());
  panel.heading.after(make("div", { class: "choices" }, chosen.node));
  const query = (cursor) => ({ status: chosen.select.value, limit: rowsPerPage(), cursor });
  const pages = makePages(panel, (cursor) => load("/people-without-contact", query(cursor)), (items) =>
    items.length === 0
      ? make("p", { class: "faint" }, "None.")
      : makeTable("Patients without a contact", PEOPLE_COLUMNS[chosen.select.value], items),
  );
  return () => pages.first();
}

const PATIENT = { title: "Patient in Cliniko", heading: true, cell: (person) => make("code", {}, isolate(person.patient_id)) };
const CANDIDATES = {
  title: "Possible contacts",
  number: true,
  cell: (person) => (person.candidate_count === null ? "" : count(person.candidate_count, "contact")),
};
const PEOPLE_COLUMNS = { unmatched: [PATIENT], ambiguous: [PATIENT, CANDIDATES] };

/** Makes the pages of a list. The API returns the next page's cursor. Earlier cursors are kept for going back. */
function makePages(panel, load, render) {
  const cursors = [null];

  async function show(focused = null) {
    await panel.show(() => load(cursors.at(-1)), (page) => {
      const back = make("button", { type: "button", disabled: cursors.length === 1, onclick: () => { cursors.pop(); show("back"); } }, "Previous page");
      const next = make("button", { type: "button", disabled: page.next_cursor === null, onclick: () => { cursors.push(page.next_cursor); show("next"); } }, "Next page");
      const isAlone = cursors.length === 1 && page.next_cursor === null;
      const place = make("span", { class: "faint", role: "status" }, `Page ${number(cursors.length)}`);
      const buttons = isAlone ? null : make("nav", { class: "paging", "aria-label": "Pages" }, back, place, next);
      // The buttons are replaced. The focus moves to the new copy of the pressed button, or else to the other button.
      const pressed = focused === "next" ? [next, back] : [back, next];
      if (focused !== null) queueMicrotask(() => requestAnimationFrame(() => pressed.find((button) => !button.disabled)?.focus()));
      return [render(page.items), buttons];
    });
  }

  return { first: () => { cursors.length = 1; return show(); } };
}
