// Elements, and patching them in place, so that what has the focus keeps it while the queue moves.

/** Make an element. `about` sets attributes; a false one is left out. Texts are texts, never HTML. */
export function el(name, about = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Make the children of `parent` like those of `wanted`, keeping every element that is still there. */
export function patch(parent, wanted) {
  const keyed = new Map([...parent.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  let place = parent.firstChild;
  for (const next of [...wanted.childNodes]) {
    const key = next.dataset?.key;
    const now = key ? keyed.get(key) : place && !place.dataset?.key ? place : null;
    if (now && now.nodeName === next.nodeName) {
      if (now === place) place = place.nextSibling;
      else parent.insertBefore(now, place);
      if (now.nodeType === Node.TEXT_NODE) {
        if (now.data !== next.data) now.data = next.data;
      } else {
        patchAttributes(now, next);
        patch(now, next);
      }
    } else {
      parent.insertBefore(next, place);
    }
  }
  while (place) {
    const following = place.nextSibling;
    place.remove();
    place = following;
  }
}

function patchAttributes(now, next) {
  for (const { name } of [...now.attributes]) if (!next.hasAttribute(name)) now.removeAttribute(name);
  for (const { name, value } of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
}

/** Say a time as a person does: 42 s, 12 min, 3 h, 2 days. */
export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** Say how long something took, which may have been next to nothing. */
export const took = (seconds) => (seconds < 1 ? "under 1 s" : duration(seconds));

/** Say a number of bytes. */
export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < 3) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

/** An age that goes on counting by itself, see `tick`. */
export function age(seconds, before = "", after = "") {
  const since = Math.round((Date.now() - seconds * 1000) / 1000);
  return el("span", { "data-since": since, "data-before": before, "data-after": after }, `${before}${duration(seconds)}${after}`);
}

/** Bring every shown age up to date. */
export function tick() {
  for (const shown of document.querySelectorAll("[data-since]")) {
    const { since, before, after } = shown.dataset;
    const text = `${before}${duration(Date.now() / 1000 - since)}${after}`;
    if (shown.textContent !== text) shown.textContent = text;
  }
}

/** A bar of bytes, with its numbers in words beside it. */
export function bar(progress) {
  const words = progress.total ? `${size(progress.done)} of ${size(progress.total)}` : size(progress.done);
  const about = progress.total ? { value: progress.done, max: progress.total } : {};
  return [el("progress", { ...about, "aria-label": words }), el("span", {}, words)];
}

/** A definition list of what is known. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false);
  return el("dl", { class: "facts" }, known.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
