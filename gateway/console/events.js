// Server-sent events over fetch: EventSource cannot send a key. A lost connection is made again where it broke.

import { Problem, request } from "./api.js";

const FIRST_WAIT = 500; // ms, doubled at each failure
const LONGEST_WAIT = 5000;

/**
 * The events of `path`, each `{event, id, data}`, until the reader stops or `signal` aborts. `after` is the id to go on
 * after. `onconnection(live)` tells of a loss (false) and of its end (true). While the tab is hidden nothing is read: a
 * browser has six connections to one host, and many open tabs would take them all.
 */
export async function* follow(path, { signal, after = null, onconnection = () => {} }) {
  let last = after;
  let wait = FIRST_WAIT;
  while (!signal.aborted) {
    await visible(signal);
    const quiet = new AbortController();
    const stop = () => quiet.abort();
    const hidden = () => document.hidden && stop();
    signal.addEventListener("abort", stop);
    document.addEventListener("visibilitychange", hidden);
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const answer = await request("GET", path, { headers, signal: quiet.signal, as: "response" });
      onconnection(true);
      for await (const event of parsed(answer.body)) {
        wait = FIRST_WAIT;
        last = event.id ?? last;
        yield event;
      }
    } catch (error) {
      if (signal.aborted) return;
      // What the gateway refuses it will refuse again; one that is away, or busy, is worth waiting for.
      if (error instanceof Problem && error.status !== 0 && error.status !== 429 && error.status < 500) throw error;
    } finally {
      signal.removeEventListener("abort", stop);
      document.removeEventListener("visibilitychange", hidden);
      stop();
    }
    if (signal.aborted) return;
    if (document.hidden) continue;
    onconnection(false);
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

async function visible(signal) {
  if (!document.hidden) return;
  await new Promise((done) => {
    document.addEventListener("visibilitychange", done, { once: true });
    signal.addEventListener("abort", done, { once: true });
  });
}

// The wire form: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
async function* parsed(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = {};
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const lines = text.split(/\r\n|\n|\r(?!$)/); // a \r at the end may be half of \r\n
      text = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data !== undefined) yield { ...event, data: JSON.parse(event.data) };
          event = {};
          continue;
        }
        const [, name, content] = line.match(/^([^:]*):? ?(.*)$/s);
        if (name === "data") event.data = event.data === undefined ? content : `${event.data}\n${content}`;
        else if (name === "event" || name === "id") event[name] = content;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be gone already
  }
}
