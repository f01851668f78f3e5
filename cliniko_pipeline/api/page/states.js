// The state of an organization, shown by a word, a sign and a colour.

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

/** Returns whether the data were last verified more than a day ago, for any schedule. */
export const isOld = (last, now = Date.now()) => last === null || now - Date.parse(last) > OLD_HOURS * 3600000;

/**
 * Returns the organization's key in STATES. An organization is stale if its freshness check has failed, or if its data
 * were last verified more than a day ago. Without Dagster's daemon, nothing evaluates the freshness check between syncs.
 */
export function stateOf(organization) {
  if (!organization.is_active) return "disabled";
  if (organization.is_paused) return "paused";
  if (organization.failures > 0) return "failing";
  if (isOld(organization.verified_at)) return "stale";
  return organization.failed_checks.some((check) => check.startsWith(`${FRESHNESS}:`)) ? "stale" : "fresh";
}

/** Returns the failed asset checks, without the freshness check, because the state shows its failure. */
export const otherFailedChecks = (organization) => organization.failed_checks.filter((check) => !check.startsWith(`${FRESHNESS}:`));

/** Makes the badge of a state. */
export function makeBadge(state) {
  const { word, sign } = STATES[state];
  return make("span", { class: `badge ${state}` }, make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}
