// The board: jobs by stage, and the accounts with their budget and their line.

import { age, bar, duration, el } from "./dom.js";

export const TONES = {
  accepted: "soft", uploading: "blue", submitting: "blue", training: "violet", downloading: "blue", deploying: "violet",
  needs_attention: "amber", succeeded: "green", failed: "red", cancelled: "soft",
};

const REASONS = {
  "api-slot": "waits for an API call",
  transfer: "waits for its turn to transfer",
  backoff: "waits for the next try",
  provider: "waits for Segmind",
  spending: "submits are stopped, or none are left for today",
  trainings: "waits for another training to end",
  paused: "the account is paused",
  start: "waits for the time that its message set",
  worker: "no worker has picked it up yet",
};

const UNCLEAR = "waits: the submit had no clear answer, so Segmind is searched for its training";

/** Why a job in this state waits. */
export const reason = (state, why) => (state === "submitting" && why === "provider" ? UNCLEAR : REASONS[why]);

const ONLY_WITH_JOBS = new Set(["deploying", "needs_attention"]);
export const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** A state as people write it. */
export const words = (state) => state.replace("_", " ");

export function board(overview) {
  const live = overview.states.filter(({ state, count }) => !ENDED.has(state) && (count || !ONLY_WITH_JOBS.has(state)));
  const ended = overview.states.filter(({ state }) => ENDED.has(state));
  return el("div", { "data-key": "board" },
    el("p", { class: "sums", "data-key": "sums" }, overview.states.filter(({ count }) => count).map(({ state, count }) =>
      el("a", { href: `#state=${state}`, class: "badge", "data-tone": TONES[state], "data-key": state }, `${count} ${words(state)}`))),
    warnings(overview),
    el("h2", { id: "jobs" }, "Jobs"),
    el("div", { class: "board", "data-key": "live" }, live.map((each) => column(each, 8))),
    el("h2", { id: "accounts" }, "Accounts"),
    overview.accounts.length
      ? el("div", { class: "accounts" }, overview.accounts.map(account))
      : el("p", { class: "soft" }, "No worker has announced an account yet."),
    el("h2", { id: "ended" }, "Ended"),
    el("div", { class: "board", "data-key": "ended" }, ended.map((each) => column(each, 5))),
    el("h2", { id: "queues" }, "Queues"),
    el("p", {}, queues(overview)),
  );
}

function warnings(overview) {
  const late = overview.overdue_seconds > 15;
  return el("div", { "data-key": "warnings" },
    late && el("p", { class: "alert" },
      `A job has been due for ${duration(overview.overdue_seconds)} and no worker took it: is one running?`),
    overview.sinks.map(({ sink, trouble_seconds: seconds, waiting, reason: why, refused_job: job }) => el("p", { class: "alert", "data-key": sink },
      `No events have reached ${sink} for ${duration(seconds)}: ${why.replace(/\.?$/, ".")} `, waiting > 1 ? `${waiting} jobs wait. ` : "",
      job && el("a", { href: `#job=${job}` }, "A job whose event it refuses"))),
    overview.dead_letters > 0 && el("p", { class: "alert" },
      `${overview.dead_letters} set aside as dead letters. See: finetune dead list`));
}

function column({ state, count, oldest_seconds: oldest, jobs: known }, most) {
  const ended = ENDED.has(state);
  const jobs = known.slice(0, most);
  const more = count - jobs.length;
  return el("section", { class: "column", "data-tone": TONES[state], "data-key": state, "aria-labelledby": `state-${state}` },
    el("h3", { id: `state-${state}` }, el("span", {}, words(state)), " ", el("span", {}, String(count))),
    el("p", { class: "soft" }, count === 0 ? "none" : ended ? "latest first" : age(oldest, "oldest: ")),
    el("ul", {}, jobs.map((job) => el("li", { "data-key": job.job_id }, card(job)))),
    more > 0 && el("p", {}, el("a", { href: `#state=${state}` }, `all ${count}`)));
}

function card(job) {
  const ended = ENDED.has(job.state);
  const told = job.provider_status && !ended;
  const said = job.waiting_for && !(told && job.waiting_for === "provider") ? reason(job.state, job.waiting_for) : null;
  return el("a", { class: "card", href: `#job=${job.job_id}` },
    el("strong", {}, job.name),
    el("span", {}, age(job.seconds_in_state, "", ended ? " ago" : ""), job.account === "default" ? "" : ` · ${job.account}`),
    said && el("span", {}, ` · ${said}`),
    told && el("span", {}, ` · Segmind: ${job.provider_status}`),
    job.progress && bar(job.progress),
    job.error && el("span", { class: "bad" }, job.error));
}

function account(found) {
  const { name, calls, window_seconds: window, used, waiting, line } = found;
  const budget = `${used} of ${calls} calls in ${duration(window)} used`;
  return el("section", { class: "account", "data-key": name, "aria-labelledby": `account-${name}` },
    el("h3", { id: `account-${name}` }, name),
    el("p", {}, budget),
    el("meter", { min: 0, max: calls, high: calls * 0.9, value: used, "aria-label": `${name}: ${budget}` }),
    found.paused_seconds > 0 && el("p", { class: "alert" },
      `Paused for ${duration(found.paused_seconds)}. ${found.pause_reason}`),
    found.submits_paused_seconds > 0 && el("p", { class: "alert" },
      `Submits are paused for ${duration(found.submits_paused_seconds)}. ${found.pause_reason}`),
    found.stopped && el("p", { class: "alert" }, "Paid submits are stopped (finetune account resume)."),
    found.submits_today >= (found.max_submits_per_day ?? Infinity) && el("p", { class: "alert" }, "No submits are left for today (UTC)."),
    el("p", {}, `Trainings: ${found.trainings}${of(found.max_training)}`),
    el("p", {}, `Paid submits today: ${found.submits_today}${of(found.max_submits_per_day)}`),
    el("p", {}, waiting ? `Waiting for a call: ${waiting}` : "No job is waiting for a call."),
    line.length > 0 && el("ol", { "aria-label": `Who is next in ${name}` }, line.map((each) => el("li", { "data-key": each.job_id },
      el("a", { href: `#job=${each.job_id}` }, each.name), ` to ${each.what}`))),
    waiting > line.length && line.length > 0 && el("p", { class: "soft" }, `and ${waiting - line.length} more`));
}

function of(most) {
  return most === null || most === undefined ? "" : ` of ${most}`;
}

function queues(overview) {
  const found = Object.entries(overview.queues);
  if (!found.length) return "The broker is out of reach.";
  return `Messages waiting for a worker: ${found.map(([name, count]) => `${count} in ${name}`).join(", ")}.`;
}

/** A page of the jobs in one state, or with one label. */
export function list(what, jobs, onMore) {
  return el("div", { "data-key": `list-${what}` },
    el("p", {}, el("a", { href: "#" }, "Back to the board")),
    el("h2", { tabindex: -1, id: "title" }, `Jobs: ${what}`),
    !jobs.length && el("p", {}, onMore ? "None among the newest. More looks further back." : "There are none."),
    el("table", {},
      el("thead", {}, el("tr", {}, ["Name", "Account", "State", "Changed", "What"].map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, jobs.map((job) => el("tr", { "data-key": job.job_id },
        el("td", {}, el("a", { href: `#job=${job.job_id}` }, job.request.name)),
        el("td", {}, job.account),
        el("td", {}, el("span", { class: "badge", "data-tone": TONES[job.state] }, words(job.state))),
        el("td", {}, new Date(job.updated_at).toLocaleString()),
        el("td", {}, job.error?.message ?? (job.provider_status && `Segmind: ${job.provider_status}`) ?? reason(job.state, job.waiting_for) ?? ""))))),
    onMore && el("p", {}, el("button", { onclick: onMore }, "More")));
}
