// The state of an organization: a word, a sign and a colour.

import { make } from "./elements.js";

const FRESHNESS = "is_fresh";
const OLD_HOURS = 24;

export const STATES = {
  failing: { word: "failing", sign: "✕", rank: 0 },
  paused: { word: "paused", sign: "‖", rank: 1 },
  stale: { word: "stale", sign: "!", rank: 2 },
  fresh: { word: "fresh", sign: "✓", rank: 3 },
  disabled: { word: "disabled", sign: "–", rank: 4 },
};

/** Whether the last success is older than a day, whatever the schedule. */
export const isOld = (last, now = Date.now()) => last === null || now - Date.parse(last) > OLD_HOURS * 3600000;

/**
 * Returns the key in STATES. Stale: the check of the daemon has failed, or the last success is older than a day, as
 * happens while the daemon does not run.
 */
export function stateOf(organization) {
  if (!organization.is_active) return "disabled";
  if (organization.is_paused) return "paused";
  if (organization.failures > 0) return "failing";
  if (isOld(organization.last_success_at)) return "stale";
  return organization.failed_checks.some((check) => check.startsWith(`${FRESHNESS}:`)) ? "stale" : "fresh";
}

/** The failed asset checks without the freshness check, which the state shows. */
export const otherFailedChecks = (organization) => organization.failed_checks.filter((check) => !check.startsWith(`${FRESHNESS}:`));

/** Makes the badge of a state. */
export function makeBadge(state) {
  const { word, sign } = STATES[state];
  return make("span", { class: `badge ${state}` }, make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}
