// Client of the HTTP API: token, requests with retries, followed syncs, and CSV files.

const TOKEN = "cliniko_pipeline.token";
const SENDABLE = /^[\x21-\x7e]+$/;
const MAX_RETRIES = 3;
const MAX_WAIT_SECONDS = 120;
const DEFAULT_WAIT_SECONDS = 10;
const MAX_RECONNECTS = 20;
const MAX_RECONNECT_SECONDS = 15;
const SILENCE_SECONDS = 60;
const MAX_CSV_PAGES = 500;

/** An error with the text of the API's problem details. `wait`: seconds after which a retry may help, or null. */
export class Problem extends Error {
  constructor(status, detail, wait = null) {
    super(detail);
    this.status = status;
    this.wait = wait;
  }
}

/** There is no token, or the API refuses it. */
export class LoggedOut extends Error {}

// In a browser without session storage the token lasts until the page is reloaded.
let currentToken = null;
try {
  currentToken = sessionStorage.getItem(TOKEN);
} catch {
  // No token is stored.
}

export const hasToken = () => currentToken !== null;

/** Stores the token. Returns false if a header cannot contain the text. */
export function storeToken(text) {
  const token = text.trim();
  if (!SENDABLE.test(token)) return false;
  currentToken = token;
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // The token is stored in the variable only.
  }
  return true;
}

export function forgetToken() {
  currentToken = null;
  try {
    sessionStorage.removeItem(TOKEN);
  } catch {
    // There is no storage.
  }
}

/** A random text for an Idempotency-Key. Browsers offer randomUUID on https and on localhost only. */
export function randomKey() {
  if (typeof crypto.randomUUID === "function") return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const organizationPath = (id, rest = "") => `v1/organizations/${encodeURIComponent(id)}${rest}`;

/** Returns the JSON response to a GET. Throws Problem, LoggedOut, or AbortError if the signal is aborted. */
export async function get(path, query = {}, { signal } = {}) {
  return (await request("GET", path, { query, signal })).json();
}

/** Sends a request. After status 429 or 503, sends it again when Retry-After allows. Throws the errors of `get`. */
export async function request(method, path, { query = {}, body, headers = {}, signal } = {}) {
  for (let retries = 0; ; retries += 1) {
    const response = await send(method, path, { query, body, headers, signal });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (problem.wait === null || retries === MAX_RETRIES) throw problem;
    await waitFor(problem, signal);
  }
}

async function send(method, path, { query, body, headers, signal }) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.append(name, value);
  }
  const token = currentToken;
  if (token === null) throw new LoggedOut("You have logged out.");
  const allHeaders = { ...headers, Authorization: `Bearer ${token}` };
  if (body !== undefined) allHeaders["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, {
      method, signal, headers: allHeaders, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service cannot be reached: check that it runs and that you are online, then try again.");
  }
  if (response.status === 401) {
    // A token that was entered after this request was sent is not forgotten.
    if (currentToken === token) forgetToken();
    throw new LoggedOut("This token is invalid, expired or revoked: ask the operator for a new one.");
  }
  return response;
}

async function problemOf(response) {
  let detail = `The service answered ${response.status}.`;
  try {
    const body = await response.json();
    if (typeof body.detail === "string" && body.detail !== "") detail = body.detail;
  } catch {
    // The body is not JSON; it is probably a proxy's error page.
  }
  if (![429, 503].includes(response.status)) return new Problem(response.status, detail);
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new Problem(response.status, detail, Math.min(Math.max(wait || DEFAULT_WAIT_SECONDS, 1), MAX_WAIT_SECONDS));
}

// All requests that wait for a retry share one notice.

const waiting = new Map();
let ticking = null;

function waitFor(problem, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      waiting.delete(leave);
      showWaiting();
    };
    waiting.set(leave, { detail: problem.message, until: Date.now() + problem.wait * 1000, retry: () => { leave(); resolve(); } });
    signal?.addEventListener("abort", () => { leave(); reject(signal.reason); }, { once: true });
    showWaiting();
  });
}

function showWaiting() {
  for (const entry of [...waiting.values()]) if (entry.until <= Date.now()) return entry.retry();
  const last = [...waiting.values()].at(-1);
  document.getElementById("waiting").hidden = last === undefined;
  const reason = document.getElementById("waiting-for");
  if (reason.textContent !== (last?.detail ?? "")) reason.textContent = last?.detail ?? "";
  if (last === undefined) {
    clearInterval(ticking);
    ticking = null;
    return undefined;
  }
  document.getElementById("waiting-seconds").textContent = `Retrying in ${Math.ceil((last.until - Date.now()) / 1000)} s.`;
  ticking ??= setInterval(showWaiting, 500);
  return undefined;
}

export function retryNow() {
  for (const entry of [...waiting.values()]) entry.retry();
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });

/**
 * Follows a sync until it has ended, and returns its final state. Calls `onSync` with every state, and `onReconnect`
 * before it reopens a lost connection. Throws the errors of `get`.
 */
export async function follow(id, { signal, onSync, onReconnect }) {
  for (let reconnects = 0; ; reconnects += 1) {
    try {
      const response = await request("GET", `v1/syncs/${encodeURIComponent(id)}/events`, { signal });
      for await (const { name, data } of readEvents(response.body, signal)) {
        reconnects = 0;
        const sync = JSON.parse(data);
        onSync(sync);
        if (name === "ended") return sync;
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      const isTransient = error instanceof TypeError || error instanceof SyntaxError || error.status === 0 || error.status >= 500;
      if (!isTransient || reconnects >= MAX_RECONNECTS) throw error;
    }
    if (reconnects >= MAX_RECONNECTS) throw new Problem(0, "The connection was lost too often: reload the page to follow the sync.");
    onReconnect();
    await pause(Math.min(2 ** reconnects, MAX_RECONNECT_SECONDS), signal);
  }
}

/** Yields the server-sent events of a stream. The browser's EventSource is not used, because it cannot send the token. */
async function* readEvents(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await readWithTimeout(reader.read(), signal);
      if (done) return;
      text = (text + value).replaceAll("\r\n", "\n");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = block.split("\n").map((line) => /^([a-z]+):\s?(.*)$/.exec(line)).filter((field) => field !== null);
        const data = fields.filter((field) => field[1] === "data").map((field) => field[2]).join("\n");
        if (data !== "") yield { name: fields.find((field) => field[1] === "event")?.[2] ?? "message", data };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Waits for a read. Fails after SILENCE_SECONDS, because a working service would have sent a ping by then. */
function readWithTimeout(read, signal) {
  const timer = new AbortController();
  const silence = pause(SILENCE_SECONDS, timer.signal).then(() => { throw new TypeError("silence"); });
  silence.catch(() => {});
  return Promise.race([read, silence]).finally(() => {
    timer.abort(signal.reason ?? new TypeError("read"));
  });
}

/** Loads up to MAX_CSV_PAGES pages as one CSV text. `isComplete` is false if there are more pages. */
export async function loadCsv(path, query, { signal }) {
  const parts = [];
  let cursor = null;
  for (let page = 0; page < MAX_CSV_PAGES; page += 1) {
    const response = await request("GET", path, { query: { ...query, cursor }, signal, headers: { Accept: "text/csv" } });
    const text = await response.text();
    parts.push(page === 0 ? text : text.slice(text.indexOf("\n") + 1));
    cursor = nextCursor(response.headers.get("Link"));
    if (cursor === null) return { text: parts.join(""), isComplete: true };
  }
  return { text: parts.join(""), isComplete: false };
}

function nextCursor(link) {
  const found = /<([^>]*)>;\s*rel="next"/.exec(link ?? "");
  return found === null ? null : new URL(found[1], document.baseURI).searchParams.get("cursor");
}
