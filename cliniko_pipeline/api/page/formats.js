// Numbers, durations and instants as texts.

import { make } from "./elements.js";

const NUMBER = new Intl.NumberFormat("en");
const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const FULL_DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const UNITS = [["year", 31536000], ["month", 2592000], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const REFRESH_SECONDS = 20;

export const number = (value) => NUMBER.format(value);

/** Returns a text such as "1 sync" or "3 syncs". */
export const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;

export const capitalize = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Returns a text such as "4 minutes ago" or "in 3 days". */
export function relative(instant, now = Date.now()) {
  const seconds = (instant.getTime() - now) / 1000;
  if (Math.abs(seconds) < 45) return seconds > 10 ? "in a moment" : "just now";
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length * 0.95) return AGO.format(Math.round(seconds / length), unit);
  }
  return AGO.format(Math.sign(seconds), "minute");
}

export const day = (text) => DAY.format(new Date(`${text}T00:00:00Z`));
export const fullDay = (text) => FULL_DAY.format(new Date(`${text}T00:00:00Z`));

/** Returns the instant in UTC, with seconds. */
export const exact = (instant) => `${instant.toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** Returns a text such as "12 s", "3 min 5 s" or "2 h 10 min". */
export function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return seconds < 600 ? `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60) % 60} s` : `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Makes a relative time that is kept current, with the exact instant as its title. */
export function makeTime(text, otherwise = "never") {
  if (text === null || text === undefined) return make("span", { class: "faint" }, otherwise);
  const instant = new Date(text);
  return make("time", { datetime: instant.toISOString(), title: exact(instant), "data-relative": true }, relative(instant));
}

/** Refreshes all relative times from now on. */
export function refreshTimes() {
  setInterval(() => {
    for (const time of document.querySelectorAll("time[data-relative]")) {
      time.textContent = relative(new Date(time.dateTime));
    }
  }, REFRESH_SECONDS * 1000);
}
