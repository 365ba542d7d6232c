// The end of a job's log, followed: asked for from the byte that is had.

import { request } from "./api.js";
import { repeat } from "./states.js";

const LOOK_SECONDS = 2;
const SHOWN = 200_000; // characters: a page that holds more is slow, and nobody reads them

/** Append to `element` what the log at `path` gets; `over()` says that the job has ended and only the rest is to come. */
export function tail(element, path, signal, over) {
  const decoder = new TextDecoder();
  const whole = new AbortController();
  signal.addEventListener("abort", () => whole.abort());
  let start = 0;
  element.textContent = "Nothing written yet.";
  repeat(whole.signal, LOOK_SECONDS, async () => {
    const last = over(); // asked before reading: what is written until then is in this answer or a later one
    for (;;) {
      const answer = await request("GET", `${path}?start=${start}`, { signal: whole.signal, as: "response" });
      const part = await answer.arrayBuffer();
      if (part.byteLength === 0) break;
      const follows = element.scrollTop + element.clientHeight >= element.scrollHeight - 8; // else the person reads above
      const before = start === 0 ? "" : element.textContent;
      start += part.byteLength;
      element.textContent = (before + decoder.decode(part, { stream: true })).slice(-SHOWN);
      if (follows) element.scrollTop = element.scrollHeight;
    }
    if (last) whole.abort();
  }, true);
}
