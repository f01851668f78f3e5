// Syncs: requested, followed while they go on, cancelled, and listed.

import { follow, LoggedOut, organizationPath, Problem, randomKey, request } from "./api.js";
import { ask, linkOut, make, table, told } from "./elements.js";
import { counted, duration, number, sentence, when } from "./formats.js";
import { isForOthers, problem } from "./panels.js";

const GOING_ON = ["queued", "running", "cancelling"];
const SECONDS_OF_SILENCE = 8;
const STEPS = {
  "cliniko/patients": "Patients are read",
  "cliniko/appointments": "Appointments are read",
  contact_mapping: "Patients are mapped to contacts",
  active_patients: "Active patients are counted",
};

export const isGoingOn = (sync) => GOING_ON.includes(sync.status);

/** The buttons, the progress of what they started, and what came of it. `onEnded` is called when a sync has ended. */
export class SyncControl {
  constructor(organizationId, { signal, onLoggedOut, onEnded }) {
    this.organizationId = organizationId;
    this.signal = signal;
    this.onLoggedOut = onLoggedOut;
    this.onEnded = onEnded;
    this.followed = null;
    // What has ended is not followed again where a list that was made a moment earlier has it as going on.
    this.ended = new Set();
    this.sync = make("button", { type: "button", class: "main", onclick: () => this.#start(false) }, "Sync now");
    this.full = make("button", { type: "button", onclick: () => this.#askForFull() }, "Full sync …");
    this.why = make("p", { class: "faint", id: "why-no-sync", hidden: true });
    this.buttons = make("div", { class: "buttons" }, this.sync, this.full);
    this.heading = make("h2", { tabindex: -1, id: "sync-heading" }, "Sync");
    this.bar = make("progress", { "aria-labelledby": "sync-heading" });
    this.line = make("p", { class: "progress-line" });
    this.details = make("p", { class: "faint" });
    this.cancel = make("button", { type: "button", onclick: () => this.#cancel() }, "Cancel");
    this.progress = make("div", { class: "progress", hidden: true }, this.bar, this.line, this.details, make("div", { class: "buttons" }, this.cancel));
    // Read out only where something else is going on, not with every number.
    this.spoken = make("p", { class: "unseen", "aria-live": "polite" });
    this.result = make("div", { tabindex: -1, class: "result" });
    this.node = make("section", { class: "panel wide sync", "aria-labelledby": "sync-heading", hidden: true },
      this.heading, this.progress, this.result, this.spoken);
  }

  /** No sync can be requested; says why. */
  disable(why) {
    this.isDisabled = true;
    this.why.textContent = why;
    this.why.hidden = false;
    for (const each of [this.sync, this.full]) {
      each.disabled = true;
      each.setAttribute("aria-describedby", "why-no-sync");
    }
  }

  /** Follows the sync until it has ended. */
  async follow(id, { isNew = true, hasFocus = false } = {}) {
    if (this.followed !== null || this.ended.has(id)) return;
    this.followed = id;
    this.#busy(true);
    this.node.hidden = false;
    this.progress.hidden = false;
    this.result.replaceChildren(...(isNew ? [] : [make("p", {}, "A sync was going on already; this is it.")]));
    this.heading.textContent = "A sync is going on";
    this.bar.removeAttribute("value");
    this.line.textContent = "Waiting for its turn.";
    this.details.textContent = "";
    this.known = "";
    this.heardAt = null;
    this.spoken.textContent = "";
    this.cancel.disabled = false;
    const ticking = setInterval(() => this.#showSilence(), 1000);
    if (hasFocus) this.heading.focus();
    let ended = null;
    let failure = null;
    try {
      ended = await follow(id, {
        signal: this.signal,
        onSync: (sync) => this.#show(sync),
        onBreak: () => {
          this.known = "The connection was lost; it is opened again.";
          this.heardAt = null;
          this.#showSilence();
        },
      });
    } catch (error) {
      if (error instanceof LoggedOut) this.onLoggedOut(error);
      if (isForOthers(error, this.signal)) return;
      failure = problem(error, () => this.follow(id));
    } finally {
      clearInterval(ticking);
    }
    const hadFocus = this.node.contains(document.activeElement);
    this.followed = null;
    this.progress.hidden = true;
    this.#busy(false);
    this.heading.textContent = failure === null ? `The sync ${WORDS[ended.status]}` : "Sync";
    this.result.replaceChildren(...(failure === null ? outcome(ended) : [failure]));
    this.#say(failure === null ? `The sync ${WORDS[ended.status]}.` : "");
    if (hadFocus) this.heading.focus();
    // Where it cannot be followed, whoever looks at it tries again: loading all would begin to follow it at once.
    if (failure !== null) return;
    this.ended.add(id);
    this.onEnded();
  }

  #show(sync) {
    const now = sync.progress;
    this.heading.textContent = sync.full ? "A full sync is going on" : "A sync is going on";
    this.cancel.disabled = sync.status === "cancelling";
    const told = [];
    if (sync.status === "queued") this.line.textContent = "Waiting for its turn.";
    else if (sync.status === "cancelling") this.line.textContent = "It is being cancelled: what it is doing is brought to an end.";
    else {
      const table = sync.tables.find((each) => each.status === "running");
      const step = STEPS[table?.name] ?? "It is at work";
      const isReading = now !== null && table !== undefined && table.name.startsWith("cliniko/");
      this.line.textContent = isReading
        ? `${words(now.resource)}: ${number(Math.min(now.records_read, now.records))} of ${number(now.records)} records`
        : `${step}.`;
      if (isReading && now.records > 0) {
        this.bar.max = now.records;
        this.bar.value = Math.min(now.records_read, now.records);
      } else {
        this.bar.removeAttribute("value");
      }
      if (isReading && now.seconds_left >= 1) told.push(`about ${duration(now.seconds_left)} left for these`);
      this.#say(isReading ? `${words(now.resource)} are read.` : `${step}.`);
    }
    const requests = Math.max(now?.requests ?? 0, sync.requests);
    if (requests > 0) told.unshift(`${counted(requests, "request")} to Cliniko`);
    if (sync.seconds_waited >= 1) told.push(`${duration(sync.seconds_waited)} waited for Cliniko's limit`);
    this.known = told.length > 0 ? `${told.join(", ")}.` : "";
    this.heardAt = sync.status === "running" ? Date.now() : null;
    this.#showSilence();
  }

  /** The API tells of changes only: what stands still for long is said to, and why that may be. */
  #showSilence() {
    const seconds = this.heardAt === null ? 0 : Math.floor((Date.now() - this.heardAt) / 1000);
    const silence = `Nothing new for ${duration(seconds)}: it may be waiting for Cliniko's limit of requests.`;
    this.details.textContent = [this.known, seconds >= SECONDS_OF_SILENCE && silence].filter(Boolean).join(" ");
  }

  #say(text) {
    if (this.spoken.textContent !== text) this.spoken.textContent = text;
  }

  #busy(isBusy) {
    if (this.isDisabled) return;
    for (const each of [this.sync, this.full]) each.disabled = isBusy;
  }

  async #askForFull() {
    const text =
      "Everything is read from the beginning, and what Cliniko no longer has is marked as deleted. For a large clinic that " +
      "takes many minutes and many requests. A sync finds what has changed without it.";
    if (await ask("Sync everything?", text, "Yes, sync everything")) await this.#start(true);
  }

  async #start(full) {
    this.#busy(true);
    this.node.hidden = false;
    this.heading.textContent = "Sync";
    this.result.replaceChildren(make("p", {}, "The sync is requested …"));
    // One key for one press of the button: what is sent again after a wait leads to no second sync.
    const headers = { "Idempotency-Key": randomKey() };
    try {
      const path = organizationPath(this.organizationId, "/syncs");
      const response = await request("POST", path, { body: { full }, headers, signal: this.signal });
      const accepted = await response.json();
      await this.follow(accepted.id, { isNew: accepted.is_new, hasFocus: true });
    } catch (error) {
      if (error instanceof LoggedOut) this.onLoggedOut(error);
      if (isForOthers(error, this.signal)) return;
      this.#busy(false);
      if (error instanceof Problem && error.status === 403) {
        this.disable("This token may look, and not request syncs: the operator makes tokens with the scope sync.");
      }
      this.result.replaceChildren(problem(error));
    }
  }

  async #cancel() {
    this.cancel.disabled = true;
    try {
      await request("DELETE", `v1/syncs/${encodeURIComponent(this.followed)}`, { signal: this.signal });
    } catch (error) {
      if (error instanceof LoggedOut) this.onLoggedOut(error);
      if (isForOthers(error, this.signal)) return;
      this.cancel.disabled = false;
      this.result.replaceChildren(problem(error));
    }
  }
}

const WORDS = { succeeded: "has succeeded", failed: "has failed", cancelled: "was cancelled" };

function outcome(sync) {
  const facts = [counted(sync.requests, "request")];
  const seconds = lasted(sync);
  if (seconds !== null) facts.unshift(`It took ${duration(seconds)}`);
  const rows = sync.tables.find((each) => each.name === "active_patients")?.counts.rows;
  if (rows !== undefined) facts.push(counted(rows, "active patient"));
  return [
    make("p", {}, `${facts.join(", ")}. `, linkOut(sync.url, "The run in Dagster")),
    sync.error === null ? null : make("p", { class: "bad-text" }, told(sync.error)),
  ].filter((each) => each !== null);
}

/** Seconds, or null where it has not begun or not ended. */
function lasted(sync) {
  if (sync.started_at === null || sync.finished_at === null) return null;
  return (Date.parse(sync.finished_at) - Date.parse(sync.started_at)) / 1000;
}

const words = (resource) => sentence(resource.replaceAll("_", " "));

export function syncTable(syncs) {
  if (syncs.length === 0) return make("p", { class: "faint" }, "It was not synced yet.");
  return table("The last syncs, the latest first", COLUMNS, syncs);
}

const SIGNS = { succeeded: "✓", failed: "✕", cancelled: "–", queued: "…", running: "…", cancelling: "…" };

const COLUMNS = [
  {
    title: "Begun",
    heading: true,
    cell: (each) => when(each.started_at, "not yet"),
  },
  {
    title: "Status",
    cell: (each) => [
      make("span", { class: `badge sync-${each.status}` }, make("span", { "aria-hidden": "true" }, SIGNS[each.status] ?? ""), ` ${each.status}`),
      each.full ? make("span", { class: "aside" }, " full") : null,
      each.error === null ? null : make("div", { class: "bad-text" }, told(each.error)),
    ],
  },
  { title: "Took", number: true, cell: (each) => { const seconds = lasted(each); return seconds === null ? "" : duration(seconds); } },
  { title: "Requests", number: true, cell: (each) => number(each.requests) },
  { title: "Run", cell: (each) => linkOut(each.url, "Dagster") },
];
