// The API: requests with the token, and server-sent events that come back where they broke off.

const KEY = "finetune-queue-token";
const dialog = document.getElementById("token");
const field = document.getElementById("token-value");

let asking = null;

/** Ask for the token, once however many requests were refused. */
function askForToken() {
  asking ??= new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value);
      field.value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
    field.focus();
  });
  return asking;
}

dialog.addEventListener("cancel", (event) => event.preventDefault());

function headers(more) {
  const token = sessionStorage.getItem(KEY);
  return { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
}

/** What went wrong, in the words of its problem details. */
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? `The gateway answered with ${status}.`);
    this.status = status;
  }
}

/** Call the API and return its JSON; asks for a token when one is needed. */
export async function api(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    const reply = await fetch(path, { ...options, headers: headers(options.headers) });
    if (reply.ok) return reply.json();
    if (reply.status === 401) {
      if (sessionStorage.getItem(KEY) === used) await askForToken();
      continue;
    }
    throw new ApiError(reply.status, await reply.json().catch(() => null));
  }
}

/**
 * Follow a stream until `signal` aborts: `onEvent` gets each event's data, `onState` whether it is live.
 * The browser's own EventSource cannot send a token.
 */
export async function follow(path, { signal, onEvent, onState }) {
  let last = "";
  let pause = 500;
  while (!signal.aborted) {
    try {
      const reply = await fetch(path, { signal, headers: headers(last ? { "Last-Event-ID": last } : {}) });
      if (reply.status === 401) { await askForToken(); continue; }
      if (!reply.ok) throw new ApiError(reply.status, null);
      onState("live");
      pause = 500;
      for await (const [id, data] of events(reply.body)) {
        if (id) last = id;
        onEvent(data);
      }
    } catch (error) {
      if (signal.aborted) return;
      onState("gone");
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 10_000);
  }
}

/** Read a stream of events: pairs of id and parsed data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const found = Object.fromEntries(block.split("\n").filter((line) => !line.startsWith(":")).map((line) => {
          const colon = line.indexOf(": ");
          return [line.slice(0, colon), line.slice(colon + 2)];
        }));
        if (found.data) yield [found.id, JSON.parse(found.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
