// The page: which view is shown, what keeps it up to date, and what is said aloud.

import { board, list, words } from "./board.js";
import { el, patch, tick } from "./dom.js";
import { job } from "./job.js";
import { api, ApiError, follow } from "./live.js";

const main = document.getElementById("main");
const news = document.getElementById("news");
const link = document.getElementById("link");
const TITLE = document.title;
const LOUD = new Set(["succeeded", "failed", "cancelled", "needs_attention"]);
const LOOKS = 10; // pages without a match that are passed over at once

let view = null; // what is shown: { refresh, wants(jobId), every }
let queued = null;
let silence = null;
let stream = "wait"; // how the event stream is

/** Show it. What has the focus keeps it, also where it moved elsewhere; if it is gone, one reads on from the title. */
function show(content) {
  const held = main.contains(document.activeElement) ? document.activeElement : null;
  patch(main, el("main", {}, content));
  if (!held || main.contains(held)) return;
  const href = held.getAttribute("href");
  const same = href && main.querySelector(`a[href="${CSS.escape(href)}"]`);
  if (same) same.focus();
  else focusTitle();
}

function focusTitle() {
  (document.getElementById("title") ?? main).focus();
}

function failed(error) {
  if (error instanceof ApiError && [404, 422].includes(error.status)) {
    const title = error.status === 404 ? "No such job" : "That cannot be searched for";
    show([el("p", {}, el("a", { href: "#" }, "Back to the board")), el("h2", { tabindex: -1, id: "title" }, title), el("p", {}, error.message)]);
    return;
  }
  setLink("gone", error instanceof ApiError ? error.message : undefined);
  main.toggleAttribute("data-old", true);
}

/** The views: each returns how it is brought up to date. */
const views = {
  board: () => ({
    every: 5,
    wants: () => true,
    refresh: async () => {
      document.title = TITLE;
      return [board(await api("/v1/overview"))];
    },
  }),

  state: (state) => listed(words(state), { state }),
  label: (label) => listed(label, { label }),

  job: (id) => ({
    every: 2,
    wants: (jobId) => jobId === id,
    refresh: async () => {
      const base = `/v1/jobs/${encodeURIComponent(id)}`;
      const [found, events] = await Promise.all([api(base), allEvents(base)]);
      document.title = `${found.request.name} (${words(found.state)}) - ${TITLE}`;
      return [job(found, events, act)];
    },
  }),
};

/** A list of jobs that grows by the page, and stays as it is while somebody reads it. */
function listed(what, filter) {
  const jobs = new Map();
  let next; // the cursor of the page that follows; null after the last one
  let looking = null;
  const page = async (cursor) => {
    const query = new URLSearchParams({ ...filter, ...(cursor ? { cursor } : {}) });
    const found = await api(`/v1/jobs?${query}`);
    for (const each of found.jobs) jobs.set(each.job_id, each);
    return found.next ?? null; // the last page has none
  };
  const look = async () => {
    const known = jobs.size;
    // A page ends after so many jobs that do not match, and may be empty before the last.
    for (let looks = 0; looks < LOOKS && next !== null && jobs.size === known && view === mine; looks++) next = await page(next);
  };
  const further = () => (looking ??= look().finally(() => { looking = null; }));
  const more = async () => { await further().catch(failed); await refresh(); };
  const mine = {
    every: null,
    wants: () => false,
    refresh: async () => {
      if (next === undefined || looking) await further();
      else if (!jobs.size) { // what came since
        const after = await page();
        if (jobs.size) next = after;
      }
      document.title = `${what} - ${TITLE}`;
      return [list(what, [...jobs.values()], next ? more : null)];
    },
  };
  return mine;
}

async function allEvents(base) {
  const found = [];
  for (let after = 0; ;) {
    const page = await api(`${base}/events?limit=1000&after=${after}`);
    found.push(...page.events);
    if (page.next === after) return found;
    after = page.next;
  }
}

async function refresh() {
  const mine = view;
  try {
    const content = await mine.refresh();
    if (mine !== view) return;
    show(content);
    main.toggleAttribute("data-old", false);
    setLink(stream);
  } catch (error) {
    if (mine === view) failed(error);
  }
}

/** Bring the view up to date soon; many reasons at once are one. */
function soon(milliseconds) {
  queued ??= setTimeout(async () => {
    queued = null;
    await refresh();
  }, milliseconds);
}

async function route({ first = false } = {}) {
  const typed = location.hash.slice(1).replace(/[+&]/g, encodeURIComponent); // which mean themselves, as in no query
  const [[name, value] = []] = new URLSearchParams(typed);
  if (location.hash === "#main") return; // the skip link
  view = Object.hasOwn(views, name) && value ? views[name](value) : views.board();
  await refresh();
  if (!first) focusTitle();
}

async function act(what, found, body) {
  const { name } = found.request;
  if (what === "cancel" && !(await confirmed(`Cancel ${name}?`,
    "What has not been submitted is stopped. Segmind's training continues and is still charged: its API has no cancel.", "Cancel the job"))) return;
  if (body?.public && !(await confirmed(`Make the model of ${name} public?`,
    "Others can then use it at Segmind.", "Make it public"))) return;
  try {
    await api(found.links[what], { method: "POST", ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }) });
    say(`${name}: ${what} requested`);
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

function confirmed(title, text, yes) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  document.getElementById("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

/** Show a sentence for some seconds, and have it read aloud. */
function say(text) {
  news.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { news.textContent = ""; }, 8000);
}

function setLink(state, why = "the connection was lost.") {
  link.dataset.state = state;
  document.getElementById("link-text").textContent = { live: "live", gone: `Trying again: ${why}`, wait: "connecting" }[state];
}

function onEvent(event) {
  const { data } = event;
  const kind = event.type?.split(".").at(-2);
  if (LOUD.has(kind)) say(`${data.name}: ${words(kind)}`);
  if (view?.wants(data?.job_id)) soon(400);
}

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = new FormData(event.target).get("id").trim();
  if (wanted.includes("=")) location.hash = `#label=${encodeURIComponent(wanted)}`;
  else if (wanted) location.hash = `#job=${encodeURIComponent(wanted.toLowerCase())}`;
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && location.hash && !document.querySelector("dialog[open]")) location.hash = "";
});
window.addEventListener("hashchange", () => route());

let seconds = 0;
setInterval(() => {
  tick();
  seconds += 1;
  if (view?.every && seconds % view.every === 0 && !document.hidden) soon(0);
}, 1000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(0); });

await route({ first: true });
follow("/v1/stream", {
  signal: new AbortController().signal,
  onEvent,
  onState: (state) => {
    stream = state;
    setLink(state);
    if (state === "live") soon(0);
  },
});
