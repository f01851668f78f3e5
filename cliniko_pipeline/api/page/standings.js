// How an organization stands, in a word, a sign and a colour.

import { make } from "./elements.js";

const FRESHNESS = "is_not_older_than_promised";
const OLD_HOURS = 24;

export const STATES = {
  failing: { word: "failing", sign: "✕", rank: 0 },
  paused: { word: "paused", sign: "‖", rank: 1 },
  stale: { word: "stale", sign: "!", rank: 2 },
  fresh: { word: "fresh", sign: "✓", rank: 3 },
  disabled: { word: "disabled", sign: "–", rank: 4 },
};

/** Whether a last success is so long ago that it should be looked at, whatever the schedule promises. */
export const isOld = (last, now = Date.now()) => last === null || now - Date.parse(last) > OLD_HOURS * 3600000;

/**
 * The key in STATES. Stale is what the pipeline has noted as older than promised; and what is older than a day, for
 * where its daemon does not run nothing is noted.
 */
export function stateOf(organization) {
  if (!organization.is_active) return "disabled";
  if (organization.is_paused) return "paused";
  if (organization.failures > 0) return "failing";
  if (isOld(organization.last_success_at)) return "stale";
  return organization.failed_checks.some((check) => check.startsWith(`${FRESHNESS}:`)) ? "stale" : "fresh";
}

/** The checks that do not hold, without the one that the state tells. */
export const otherChecks = (organization) => organization.failed_checks.filter((check) => !check.startsWith(`${FRESHNESS}:`));

/** The state as a badge. */
export function badge(state) {
  const { word, sign } = STATES[state];
  return make("span", { class: `badge ${state}` }, make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}
