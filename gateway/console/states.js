// What a page shows while it waits, when there is nothing, and when something went wrong.

import { Problem } from "./api.js";
import { h, replace } from "./dom.js";

export const loading = (text = "Loading…") => h("p", { class: "state", role: "status" }, h("span", { class: "spinner" }), text);

/** `action` is an element, for example a link to what would fill the place. */
export const empty = (title, text, action) =>
  h("div", { class: "state empty" }, h("strong", {}, title), text ? h("p", {}, text) : null, action);

/** A problem as what it says, with the request's id for the operator; `retry` is called by the button. */
export function failure(error, retry) {
  const known = error instanceof Problem;
  if (!known) console.error(error);
  return h(
    "div",
    { class: "state problem", role: "alert" },
    h("strong", {}, known ? error.title : "This page failed"),
    error.message && error.message !== error.title ? h("p", {}, error.message) : null,
    known ? places(error.document) : null,
    known && error.requestId ? h("p", { class: "small" }, "Request ", h("code", {}, error.requestId)) : null,
    retry ? h("button", { type: "button", onclick: retry }, "Try again") : null,
  );
}

/** Whether the same request would be refused again: there is nothing to try a second time. */
export const refused = (error) => [400, 404, 413, 415, 422].includes(error.status);

// Problems name what to change: fields of a request, settings of a training, files of a data set.
function places(document) {
  const rows = document.errors ?? document.findings ?? [];
  if (!Array.isArray(rows) || rows.length === 0) return null;
  const text = (row) => [row.field ?? row.file ?? row.loc?.join("."), row.line && `line ${row.line}`, row.problem ?? row.msg];
  return h("ul", {}, rows.slice(0, 20).map((row) => h("li", {}, text(row).filter(Boolean).join(": "))));
}

/**
 * Show `load()`'s answer by `draw(answer)` (which returns elements), a spinner before and a failure with a retry after.
 * Nothing is drawn once the page was left.
 */
export async function shown(place, signal, load, draw) {
  replace(place, loading());
  try {
    const answer = await load();
    if (!signal.aborted) replace(place, await draw(answer));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    replace(place, failure(error, () => shown(place, signal, load, draw)));
  }
}

/** Call `look` every `seconds` while the page is there and visible; also `now`, if asked. What it throws ends nothing. */
export async function repeat(signal, seconds, look, now = false) {
  for (let first = !now; !signal.aborted; first = false) {
    if (!first && !document.hidden) await look().catch((error) => error.name === "AbortError" || error instanceof Problem || console.error(error));
    await new Promise((done) => {
      const timer = setTimeout(done, seconds * 1000);
      signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
    });
  }
}
