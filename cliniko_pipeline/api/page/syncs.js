// Requests, follows, cancels and lists syncs.

import { follow, organizationPath, Problem, randomKey, request } from "./api.js";
import { askConfirmation, isolate, make, makeLink, makeTable } from "./elements.js";
import { capitalize, count, duration, makeTime, number } from "./formats.js";
import { isHandled, makeProblem } from "./panels.js";

const UNFINISHED = ["queued", "running", "cancelling"];
const SILENCE_SECONDS = 8;
const STEPS = {
  "cliniko/patients": "Reading patients",
  "cliniko/appointments": "Reading appointments",
  contact_mapping: "Mapping patients to contacts",
  active_patients: "Computing active patients",
};

export const isUnfinished = (sync) => UNFINISHED.includes(sync.status);

/** The buttons, and the progress and result of a followed sync. Calls `onEnded` when the sync has ended. */
export class SyncControl {
  constructor(organizationId, { signal, onLoggedOut, onEnded }) {
    this.organizationId = organizationId;
    this.signal = signal;
    this.onLoggedOut = onLoggedOut;
    this.onEnded = onEnded;
    this.followed = null;
    // Ended syncs are not followed again, even if a list that was loaded earlier shows them as running.
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
    // Screen readers announce each new step, not every number.
    this.announcement = make("p", { class: "unseen", "aria-live": "polite" });
    this.result = make("div", { tabindex: -1, class: "result" });
    this.node = make("section", { class: "panel wide sync", "aria-labelledby": "sync-heading", hidden: true },
      this.heading, this.progress, this.result, this.announcement);
  }

  /** Disables the buttons and shows the reason. */
  disable(reason) {
    this.isDisabled = true;
    this.why.textContent = reason;
    this.why.hidden = false;
    for (const button of [this.sync, this.full]) {
      button.disabled = true;
      button.setAttribute("aria-describedby", "why-no-sync");
    }
  }

  /** Follows the sync until it has ended. */
  async follow(id, { isNew = true, hasFocus = false } = {}) {
    if (this.followed !== null || this.ended.has(id)) return;
    this.followed = id;
    this.#setBusy(true);
    this.node.hidden = false;
    this.progress.hidden = false;
    this.result.replaceChildren(...(isNew ? [] : [make("p", {}, "This sync was queued or running already.")]));
    this.heading.textContent = "A sync is running";
    this.bar.removeAttribute("value");
    this.line.textContent = "Queued.";
    this.details.textContent = "";
    this.facts = "";
    this.updatedAt = null;
    this.announcement.textContent = "";
    this.cancel.disabled = false;
    const ticking = setInterval(() => this.#showSilence(), 1000);
    if (hasFocus) this.heading.focus();
    let ended = null;
    let failure = null;
    try {
      ended = await follow(id, {
        signal: this.signal,
        onSync: (sync) => this.#show(sync),
        onReconnect: () => {
          this.facts = "The connection was lost: reconnecting.";
          this.updatedAt = null;
          this.#showSilence();
        },
      });
    } catch (error) {
      if (isHandled(error, this)) return;
      failure = makeProblem(error, () => this.follow(id));
    } finally {
      clearInterval(ticking);
    }
    const hadFocus = this.node.contains(document.activeElement);
    this.followed = null;
    this.progress.hidden = true;
    this.#setBusy(false);
    this.heading.textContent = failure === null ? `The sync ${OUTCOMES[ended.status]}` : "Sync";
    this.result.replaceChildren(...(failure === null ? resultOf(ended) : [failure]));
    this.#announce(failure === null ? `The sync ${OUTCOMES[ended.status]}.` : "");
    if (hadFocus) this.heading.focus();
    // After a failure, the user decides about a retry. Reloading everything would follow the sync again immediately.
    if (failure !== null) return;
    this.ended.add(id);
    this.onEnded();
  }

  #show(sync) {
    const progress = sync.progress;
    this.heading.textContent = sync.full ? "A full sync is running" : "A sync is running";
    this.cancel.disabled = sync.status === "cancelling";
    const facts = [];
    if (sync.status === "queued") this.line.textContent = "Queued.";
    else if (sync.status === "cancelling") this.line.textContent = "Cancelling: the current step is finished first.";
    else {
      const table = sync.tables.find(({ status }) => status === "running");
      const step = STEPS[table?.name] ?? "Running";
      const isReading = progress !== null && table !== undefined && table.name.startsWith("cliniko/");
      this.line.textContent = isReading
        ? `${resourceName(progress.resource)}: ${number(Math.min(progress.records_read, progress.records))} of ${number(progress.records)} records`
        : `${step}.`;
      if (isReading && progress.records > 0) {
        this.bar.max = progress.records;
        this.bar.value = Math.min(progress.records_read, progress.records);
      } else {
        this.bar.removeAttribute("value");
      }
      if (isReading && progress.seconds_left >= 1) facts.push(`about ${duration(progress.seconds_left)} left for this resource`);
      this.#announce(isReading ? `Reading ${resourceName(progress.resource).toLowerCase()}.` : `${step}.`);
    }
    const requests = Math.max(progress?.requests ?? 0, sync.requests);
    if (requests > 0) facts.unshift(`${count(requests, "request")} to Cliniko`);
    if (sync.seconds_waited >= 1) facts.push(`${duration(sync.seconds_waited)} waited for Cliniko's rate limit`);
    this.facts = facts.length > 0 ? `${facts.join(", ")}.` : "";
    this.updatedAt = sync.status === "running" ? Date.now() : null;
    this.#showSilence();
  }

  /** Shows how long nothing has changed. The page counts this time, because the API sends only changes. */
  #showSilence() {
    const seconds = this.updatedAt === null ? 0 : Math.floor((Date.now() - this.updatedAt) / 1000);
    const silence = `No progress for ${duration(seconds)}: the sync may be waiting for Cliniko's rate limit.`;
    this.details.textContent = [this.facts, seconds >= SILENCE_SECONDS && silence].filter(Boolean).join(" ");
  }

  #announce(text) {
    if (this.announcement.textContent !== text) this.announcement.textContent = text;
  }

  #setBusy(isBusy) {
    if (this.isDisabled) return;
    for (const button of [this.sync, this.full]) button.disabled = isBusy;
  }

  async #askForFull() {
    const text =
      "A full sync reads everything from the beginning and marks records that were deleted in Cliniko. For a large clinic " +
      "this takes many minutes and many requests. A normal sync reads what has changed.";
    if (await askConfirmation("Start a full sync?", text, "Start full sync")) await this.#start(true);
  }

  async #start(full) {
    this.#setBusy(true);
    this.node.hidden = false;
    this.heading.textContent = "Sync";
    this.result.replaceChildren(make("p", {}, "Requesting the sync …"));
    // A retried request has the same key, so it does not start another sync.
    const headers = { "Idempotency-Key": randomKey() };
    try {
      const path = organizationPath(this.organizationId, "/syncs");
      const response = await request("POST", path, { body: { full }, headers, signal: this.signal });
      const accepted = await response.json();
      await this.follow(accepted.id, { isNew: accepted.is_new, hasFocus: true });
    } catch (error) {
      if (isHandled(error, this)) return;
      this.#setBusy(false);
      if (error instanceof Problem && error.status === 403) {
        this.disable("This token may not request syncs: ask the operator for a token with the scope sync.");
      }
      this.result.replaceChildren(makeProblem(error));
    }
  }

  async #cancel() {
    this.cancel.disabled = true;
    try {
      await request("DELETE", `v1/syncs/${encodeURIComponent(this.followed)}`, { signal: this.signal });
    } catch (error) {
      if (isHandled(error, this)) return;
      this.cancel.disabled = false;
      this.result.replaceChildren(makeProblem(error));
    }
  }
}

const OUTCOMES = { succeeded: "has succeeded", failed: "has failed", cancelled: "was cancelled" };

function resultOf(sync) {
  const facts = [count(sync.requests, "request")];
  const seconds = secondsOf(sync);
  if (seconds !== null) facts.unshift(`Finished in ${duration(seconds)}`);
  const rows = sync.tables.find(({ name }) => name === "active_patients")?.counts.rows;
  if (rows !== undefined) facts.push(count(rows, "active patient"));
  return [
    make("p", {}, `${facts.join(", ")}. `, makeLink(sync.url, "Run in Dagster")),
    sync.error === null ? null : make("p", { class: "bad-text" }, isolate(sync.error)),
  ].filter((node) => node !== null);
}

/** Returns the duration in seconds, or null if the sync has not started or not ended. */
function secondsOf(sync) {
  if (sync.started_at === null || sync.finished_at === null) return null;
  return (Date.parse(sync.finished_at) - Date.parse(sync.started_at)) / 1000;
}

const resourceName = (resource) => capitalize(resource.replaceAll("_", " "));

export function makeSyncTable(syncs) {
  if (syncs.length === 0) return make("p", { class: "faint" }, "Not synced yet.");
  return makeTable("Last syncs, the latest first", COLUMNS, syncs);
}

const SIGNS = { succeeded: "✓", failed: "✕", cancelled: "–", queued: "…", running: "…", cancelling: "…" };

const COLUMNS = [
  {
    title: "Started",
    heading: true,
    cell: (sync) => makeTime(sync.started_at, "not yet"),
  },
  {
    title: "Status",
    cell: (sync) => [
      make("span", { class: `badge sync-${sync.status}` }, make("span", { "aria-hidden": "true" }, SIGNS[sync.status] ?? ""), ` ${sync.status}`),
      sync.full ? make("span", { class: "aside" }, " full") : null,
      sync.error === null ? null : make("div", { class: "bad-text" }, isolate(sync.error)),
    ],
  },
  { title: "Duration", number: true, cell: (sync) => { const seconds = secondsOf(sync); return seconds === null ? "" : duration(seconds); } },
  { title: "Requests", number: true, cell: (sync) => number(sync.requests) },
  { title: "Run", cell: (sync) => makeLink(sync.url, "Dagster") },
];
