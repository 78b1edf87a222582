// One job: its facts, its timeline with progress, its dataset's findings and its error.

import { ENDED, reason, TONES, words } from "./board.js";
import { age, bar, duration, el, facts, size, took } from "./dom.js";

const PATH = ["accepted", "uploading", "submitting", "training", "downloading", "deploying", "succeeded"];

export function job(found, events, act) {
  const { request, state } = found;
  return el("article", { "data-key": found.job_id, "aria-labelledby": "title" },
    el("p", {}, el("a", { href: "#" }, "Back to the board")),
    el("h2", { tabindex: -1, id: "title" }, request.name, " ",
      el("span", { class: "badge", "data-tone": TONES[state] }, words(state))),
    error(found),
    el("div", { class: "actions" },
      !ENDED.has(state) && el("button", { "data-key": "cancel", onclick: () => act("cancel", found) }, "Cancel"),
      state === "failed" && el("button", { "data-key": "retry", onclick: () => act("retry", found) }, "Retry"),
      ENDED.has(state) && found.finetune_id && access(found, act)),
    el("div", { class: "halves" },
      el("section", { class: "sheet", "aria-labelledby": "timeline" },
        el("h3", { id: "timeline" }, "Timeline"),
        el("ol", { class: "timeline" }, timeline(found, events))),
      el("div", {},
        el("section", { class: "sheet", "aria-labelledby": "facts" }, el("h3", { id: "facts" }, "Facts"), about(found)),
        dataset(found.dataset_report))));
}

function error(found) {
  const problem = found.error;
  if (!problem) return el("div", { "data-key": "error" });
  const what = found.state === "failed" ? "It failed" : "The latest try failed";
  return el("div", { "data-key": "error", class: "alert" },
    el("p", {}, el("strong", {}, `${what}: `), problem.message),
    problem.action && el("p", {}, withCommands(problem.action)),
    el("p", { class: "soft" }, `${problem.code} in ${problem.stage}`));
}

/** A text with its commands, which stand between backticks, set as code. */
const withCommands = (text) => text.split("`").map((part, place) => (place % 2 ? el("code", {}, part) : part));

/** Who may use the model now, as far as this service knows. */
const visibility = (found) => found.access?.wanted ?? found.access?.confirmed ?? (found.request.segmind_public ? "public" : "private");

function access(found, act) {
  const other = visibility(found) === "public" ? "private" : "public";
  return el("button", { "data-key": `make-${other}`, onclick: () => act("access", found, { public: other === "public" }) }, `Make the model ${other}`);
}

function accessWords(found) {
  const { wanted, error } = found.access ?? {};
  if (wanted) {
    const why = found.waiting ? `: ${sentence(found.state, found.waiting)}` : "";
    return `to be made ${wanted}${why}`;
  }
  if (!found.finetune_id) return null;
  return error ? `${visibility(found)}; the change was refused: ${error.message}` : visibility(found);
}

function timeline(found, events) {
  const entered = events.filter((event) => kind(event) in TONES);
  const steps = entered.map((event, index) => {
    const next = entered[index + 1];
    const until = next ? Date.parse(next.time) : null;
    const notes = events.filter((each) => kind(each) in NOTES && each.sequence > event.sequence
      && (!next || each.sequence < next.sequence));
    return el("li", { "data-key": event.id, "data-tone": TONES[kind(event)] },
      el("span", { class: "when" }, new Date(event.time).toLocaleTimeString()),
      el("strong", {}, words(kind(event))), " ",
      until !== null && el("span", { class: "soft" }, `for ${took((until - Date.parse(event.time)) / 1000)}`),
      until === null && ENDED.has(kind(event)) && el("span", { class: "soft" },
        `after ${took((Date.parse(event.time) - Date.parse(entered[0].time)) / 1000)} in all`),
      until === null && !ENDED.has(kind(event)) && el("span", { class: "soft" },
        age((Date.now() - Date.parse(event.time)) / 1000, "for ", " so far")),
      what(event).map((text) => el("p", {}, text)),
      notes.map((each) => el("p", { class: "soft" },
        `${new Date(each.time).toLocaleTimeString()}: ${NOTES[kind(each)](each.data)}`)),
      until === null && now(found));
  });
  const at = PATH.indexOf(found.state === "needs_attention" ? "submitting" : found.state);
  const ahead = ENDED.has(found.state) ? [] : PATH.slice(at + 1)
    .filter((state) => state !== "deploying" || found.request.wait_for === "available");
  return [...steps, ahead.map((state) => el("li", { "data-key": `todo-${state}`, "data-mark": "todo" },
    words(state), el("span", { class: "unseen" }, " (to come)")))];
}

const kind = (event) => event.type.split(".").at(-2);

/** What happened within a state. */
const NOTES = {
  progress: (data) => `Segmind says ${data.provider_status ?? "nothing"}`,
  access: ({ access: { wanted, confirmed, error } }) => {
    if (wanted) return `the model is to be made ${wanted}`;
    return error ? `the model's access was not changed: ${error.message}` : `the model is ${confirmed}`;
  },
};

/** What an event tells beside its name. */
function what({ data, type }) {
  switch (kind({ type })) {
    case "submitting": return data.dataset_report ? [`dataset: ${checked(data.dataset_report)}`] : [];
    case "training": return [`training ${data.finetune_id ?? ""}`, data.provider_status && `Segmind says ${data.provider_status}`].filter(Boolean);
    case "failed": return data.error ? [data.error.message] : [];
    case "needs_attention": return data.evidence ?? [];
    case "succeeded": return data.weights ? [`${size(data.weights.bytes)} in ${data.weights.tensors} tensors, verified`] : [];
    case "cancelled": return data.finetune_id ? ["Segmind's training continues: its API has no cancel."] : [];
    default: return [];
  }
}

/** Why the job is where it is. */
function now(found) {
  if (ENDED.has(found.state)) return [];
  const { waiting } = found;
  const parts = [];
  if (found.cancel_requested) parts.push("A cancel was requested.");
  if (waiting) parts.push(`It ${sentence(found.state, waiting)}.`);
  if (found.attempts) parts.push(`Failed tries: ${found.attempts}.`);
  return [parts.map((text) => el("p", {}, text)), found.progress && el("p", {}, bar(found.progress))];
}

function sentence(state, waiting) {
  const { reason: why, ahead, estimate_seconds: estimate, submits_stopped: stopped, unserved, no_worker: none, pause_reason: pause } = waiting;
  if (none) return "waits: no worker is running; it goes on when one is started";
  if (unserved) return "waits: no running worker has its account's key; add the account to SEGMIND_ACCOUNTS again, or cancel the job";
  const text = why === "spending" ? (stopped ? "the account's submits are stopped" : "the account has no submits left for today (UTC)") : reason(state, why);
  const shut = why === "paused" ? "" : "; the account is paused";  // for what waits for Segmind, too
  const paused = pause ? `${shut}: ${pause.replace(/[.]$/, "")}` : "";
  const before = ahead ? `, ${ahead} ahead` : "";
  const long = estimate >= 1 ? `, about ${duration(estimate)}` : "";
  return `${text.startsWith("waits") ? text : `waits: ${text}`}${paused}${before}${long}`;
}

function about(found) {
  const { request, weights } = found;
  const labels = Object.entries(request.labels).map(([key, value]) => `${key}=${value}`).join(", ");
  return facts([
    ["weights", weights?.url],
    ["size", weights && size(weights.bytes)],
    ["sha256", weights?.sha256],
    ["manifest", weights?.manifest_url],
    ["model", accessWords(found)],
    ["training", found.finetune_id],
    ["slug", found.slug],
    ["Segmind says", found.provider_status],
    ["job", found.job_id],
    ["account", found.account],
    ["labels", labels],
    ["trigger word", request.trigger_word],
    ["prompt", request.instance_prompt],
    ["base model", request.base_model],
    ["parameters", JSON.stringify(request.advance_parameters)],
    ["dataset", request.dataset],
    ["submitted", new Date(found.created_at).toLocaleString()],
    ["changed", new Date(found.updated_at).toLocaleString()],
  ]);
}

function checked(report) {
  const parts = [`${report.images ?? 0} images`];
  if (report.captions) parts.push(`${report.captions} captions`);
  if (report.bytes) parts.push(size(report.bytes));
  return parts.join(", ");
}

function dataset(report) {
  if (!report) return null;
  const findings = report.findings ?? [];
  return el("section", { class: "sheet", "data-key": "dataset", "aria-labelledby": "dataset" },
    el("h3", { id: "dataset" }, "Dataset"),
    el("p", {}, checked(report)),
    findings.length
      ? el("ul", { class: "findings" }, findings.map((each) => el("li", { "data-severity": each.severity },
        el("b", {}, `${each.severity}: `), each.file ? `${each.file}: ` : "", each.message, " ",
        el("span", { class: "soft" }, each.fix))))
      : el("p", { class: "soft" }, "No problems were found."));
}
