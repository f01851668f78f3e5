// The API: the token, requests that wait where they are told to, and syncs followed as they go on.

const TOKEN = "cliniko_pipeline.token";
const SENDABLE = /^[\x21-\x7e]+$/;
const MOST_WAITS = 3;
const LONGEST_WAIT_SECONDS = 120;
const USUAL_WAIT_SECONDS = 10;
const MOST_BREAKS = 20;
const LONGEST_PAUSE_SECONDS = 15;
const SECONDS_OF_SILENCE = 60;
const PAGES_OF_CSV = 500;

/** What went wrong, as the API's problem details tell it. */
export class Problem extends Error {
  constructor(status, detail, wait = null) {
    super(detail);
    this.status = status;
    this.wait = wait;
  }
}

/** The token is not good, or no longer. */
export class LoggedOut extends Error {}

// Where the browser keeps nothing, the token lasts until the page is loaded anew.
let kept = null;
try {
  kept = sessionStorage.getItem(TOKEN);
} catch {
  // As if there were none.
}

export const hasToken = () => kept !== null;

/** False where no header could hold it. */
export function keepToken(text) {
  const token = text.trim();
  if (!SENDABLE.test(token)) return false;
  kept = token;
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // Kept above.
  }
  return true;
}

export function forgetToken() {
  kept = null;
  try {
    sessionStorage.removeItem(TOKEN);
  } catch {
    // Forgotten above.
  }
}

/** A random text for an Idempotency-Key. randomUUID is there on https and on this machine only. */
export function randomKey() {
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
}

export const organizationPath = (id, rest = "") => `v1/organizations/${encodeURIComponent(id)}${rest}`;

/** The answer to a GET, from JSON. Throws Problem, LoggedOut, and AbortError where the signal says so. */
export async function get(path, query = {}, { signal } = {}) {
  return (await request("GET", path, { query, signal })).json();
}

/** Asks again, after as long as it was told, where the service is busy (429, 503). Throws as `get` does. */
export async function request(method, path, { query = {}, body, headers = {}, signal } = {}) {
  for (let waits = 0; ; waits += 1) {
    const response = await send(method, path, { query, body, headers, signal });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (problem.wait === null || waits === MOST_WAITS) throw problem;
    await waitFor(problem, signal);
  }
}

async function send(method, path, { query, body, headers, signal }) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.append(name, value);
  }
  const token = kept;
  if (token === null) throw new LoggedOut("You have logged out.");
  const sent = { ...headers, Authorization: `Bearer ${token}` };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, {
      method, signal, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service cannot be reached: check that it runs and that you are online, then try again.");
  }
  if (response.status === 401) {
    // Unless somebody has logged in anew meanwhile.
    if (kept === token) forgetToken();
    throw new LoggedOut("This token is not good, or no longer: ask whoever operates the pipeline for another.");
  }
  return response;
}

async function problemOf(response) {
  let detail = `The service answered ${response.status}.`;
  try {
    const told = await response.json();
    if (typeof told.detail === "string" && told.detail !== "") detail = told.detail;
  } catch {
    // A proxy's page, perhaps.
  }
  if (![429, 503].includes(response.status)) return new Problem(response.status, detail);
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new Problem(response.status, detail, Math.min(Math.max(wait || USUAL_WAIT_SECONDS, 1), LONGEST_WAIT_SECONDS));
}

// Waiting: one notice for all requests that wait.

const waiting = new Map();
let ticking = null;

function waitFor(problem, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      waiting.delete(leave);
      showWaiting();
    };
    waiting.set(leave, { detail: problem.message, until: Date.now() + problem.wait * 1000, go: () => { leave(); resolve(); } });
    signal?.addEventListener("abort", () => { leave(); reject(signal.reason); }, { once: true });
    showWaiting();
  });
}

function showWaiting() {
  for (const each of [...waiting.values()]) if (each.until <= Date.now()) return each.go();
  const last = [...waiting.values()].at(-1);
  document.getElementById("waiting").hidden = last === undefined;
  const told = document.getElementById("waiting-for");
  if (told.textContent !== (last?.detail ?? "")) told.textContent = last?.detail ?? "";
  if (last === undefined) {
    clearInterval(ticking);
    ticking = null;
    return undefined;
  }
  document.getElementById("waiting-seconds").textContent = `Trying again in ${Math.ceil((last.until - Date.now()) / 1000)} s.`;
  ticking ??= setInterval(showWaiting, 500);
  return undefined;
}

export function goOnNow() {
  for (const each of [...waiting.values()]) each.go();
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });

/**
 * Follows a sync until it has ended, and returns it as it then is. `onSync` gets each state, `onBreak` is told whenever
 * the connection is lost, for it is opened again. Throws as `get` does.
 */
export async function follow(id, { signal, onSync, onBreak }) {
  for (let breaks = 0; ; breaks += 1) {
    try {
      const response = await request("GET", `v1/syncs/${encodeURIComponent(id)}/events`, { signal });
      for await (const { name, data } of events(response.body, signal)) {
        breaks = 0;
        const sync = JSON.parse(data);
        onSync(sync);
        if (name === "ended") return sync;
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      const isPassing = error instanceof TypeError || error instanceof SyntaxError || error.status === 0 || error.status >= 500;
      if (!isPassing || breaks >= MOST_BREAKS) throw error;
    }
    if (breaks >= MOST_BREAKS) throw new Problem(0, "The progress is told no longer: load the page anew to see it.");
    onBreak();
    await pause(Math.min(2 ** breaks, LONGEST_PAUSE_SECONDS), signal);
  }
}

/** The server-sent events of a stream. EventSource could not send the token. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await withinSilence(reader.read(), signal);
      if (done) return;
      text = (text + value).replaceAll("\r\n", "\n");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").map((line) => /^([a-z]+):\s?(.*)$/.exec(line)).filter((found) => found !== null);
        const data = lines.filter((found) => found[1] === "data").map((found) => found[2]).join("\n");
        if (data !== "") yield { name: lines.find((found) => found[1] === "event")?.[2] ?? "message", data };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** A connection on which nothing comes for long, not even a sign of life, is as good as broken. */
function withinSilence(read, signal) {
  const timer = new AbortController();
  const silence = pause(SECONDS_OF_SILENCE, timer.signal).then(() => { throw new TypeError("silence"); });
  silence.catch(() => {});
  return Promise.race([read, silence]).finally(() => {
    timer.abort(signal.reason ?? new TypeError("read"));
  });
}

/** All pages as one CSV text, and whether that is all there is. */
export async function csv(path, query, { signal }) {
  const parts = [];
  let cursor = null;
  for (let page = 0; page < PAGES_OF_CSV; page += 1) {
    const response = await request("GET", path, { query: { ...query, cursor }, signal, headers: { Accept: "text/csv" } });
    const text = await response.text();
    parts.push(page === 0 ? text : text.slice(text.indexOf("\n") + 1));
    cursor = nextCursor(response.headers.get("Link"));
    if (cursor === null) return { text: parts.join(""), whole: true };
  }
  return { text: parts.join(""), whole: false };
}

function nextCursor(link) {
  const found = /<([^>]*)>;\s*rel="next"/.exec(link ?? "");
  return found === null ? null : new URL(found[1], document.baseURI).searchParams.get("cursor");
}
