// Calls of the public API. A refusal is thrown as a Problem, which pages show as what it says.

import { key, leave } from "./session.js";

/** An RFC 9457 problem document; `status` 0 where nobody answered. */
export class Problem extends Error {
  constructor(status, document, requestId) {
    super(document.detail || document.title || `The gateway answered ${status}.`);
    this.status = status;
    this.title = document.title || "Something went wrong";
    this.document = document;
    this.requestId = document.request_id || requestId || null;
    this.code = (document.type || "").split(/[/:#]/).pop();
  }
}

/**
 * One call. `json` or `body` is what is sent; `as` is what is wanted of the answer: "json", "text", "blob" or
 * "response" (as it is, unread). An answer of 401 ends the session, and the app asks for a key.
 */
export async function request(method, path, { json, body, headers = {}, signal, as = "json", secret = key() } = {}) {
  const sent = new Headers(headers);
  if (secret) sent.set("Authorization", `Bearer ${secret}`);
  if (json !== undefined) {
    sent.set("Content-Type", "application/json");
    body = JSON.stringify(json);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The gateway is not answering", detail: "Nothing answers at this address now." });
  }
  if (!answer.ok) {
    const problem = new Problem(answer.status, await document_of(answer), answer.headers.get("X-Request-ID"));
    if (answer.status === 401 && secret === key()) {
      leave();
      document.dispatchEvent(new CustomEvent("unauthenticated", { detail: problem }));
    }
    throw problem;
  }
  if (as === "response") return answer;
  if (answer.status === 204) return null;
  return answer[as]();
}

export const get = (path, options) => request("GET", path, options);
export const post = (path, json, options) => request("POST", path, { json, ...options });
export const put = (path, json, options) => request("PUT", path, { json, ...options });

/** `path` with the parameters that are set. */
export function address(path, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  return query.size ? `${path}?${query}` : path;
}

/** Let the browser save the bytes under a name. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser may start to read it late
}

// /v2 has an error shape of its own; a proxy on the way may answer with anything.
async function document_of(answer) {
  try {
    const found = JSON.parse(await answer.text());
    return typeof found.error === "string" ? { title: found.error } : found;
  } catch {
    return { title: `The gateway answered ${answer.status} ${answer.statusText}`.trim() };
  }
}
