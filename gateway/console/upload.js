// Uploads of data sets, as the client does them: file by file under their digests, so that one that broke off goes on
// where it was. An archive goes whole, and the gateway unpacks it.

import { Problem, address, post } from "./api.js";
import { key } from "./session.js";
import { Sha256 } from "./sha256.js";

const PART = 32 << 20; // larger files go in parts of it
const PIECE = 4 << 20; // read at once for its digest
const ARCHIVE = /\.(zip|tar|tgz|tar\.(gz|bz2|xz))$/i;

export const isArchive = (files) => files.length === 1 && ARCHIVE.test(files[0].path);

/**
 * Make a data set of `files`, [{path, file}]. `tell(stage, done, total)` gets the bytes of the stages "reading" and
 * "sending". Resolves with the data set; a part that fails is a Problem, and the same call again goes on after it.
 */
export async function upload(files, { kind, name, signal, tell }) {
  if (isArchive(files)) return sendArchive(files[0].file, { kind, name, signal, tell });
  const listing = { kind, name, files: await digests(files, signal, tell) };
  const missing = await lacking("/v1/datasets/listings", listing, signal);
  if (missing.made) return missing.made;
  const wanted = new Map(); // digest → file: the same bytes under two paths go once
  listing.files.forEach(({ sha256 }, i) => missing.digests.has(sha256) && wanted.set(sha256, files[i].file));
  const total = [...wanted.values()].reduce((sum, file) => sum + file.size, 0);
  let done = 0;
  tell("sending", 0, total);
  for (const [sha256, file] of wanted) {
    await sendFile(file, sha256, signal, (sent) => tell("sending", done + sent, total));
    done += file.size;
  }
  return post("/v1/datasets/listings", listing, { signal });
}

function sendArchive(file, { kind, name, signal, tell }) {
  const path = address("/v1/datasets", { kind, name });
  return send("POST", path, file, signal, (sent) => tell("sending", sent, file.size));
}

async function digests(files, signal, tell) {
  const total = files.reduce((sum, { file }) => sum + file.size, 0);
  let done = 0;
  const found = [];
  for (const { path, file } of files) {
    const sha256 = await digest(file, signal, (read) => tell("reading", done + read, total));
    done += file.size;
    found.push({ path, sha256, size: file.size });
  }
  return found;
}

async function digest(blob, signal, tell) {
  const sum = new Sha256();
  for (let at = 0; at < blob.size; at += PIECE) {
    signal.throwIfAborted();
    sum.update(new Uint8Array(await blob.slice(at, at + PIECE).arrayBuffer()));
    tell(Math.min(at + PIECE, blob.size));
  }
  return sum.hex();
}

async function sendFile(file, sha256, signal, tell) {
  const place = `/v1/datasets/files/${sha256}`;
  if (file.size <= PART) {
    await send("PUT", place, file, signal, tell);
    return;
  }
  const parts = [];
  for (let at = 0; at < file.size; at += PART) {
    const part = file.slice(at, at + PART);
    parts.push({ part, at, sha256: await digest(part, signal, () => {}) });
  }
  const asked = { parts: parts.map((one) => one.sha256) };
  const missing = await lacking(`${place}/parts`, asked, signal);
  if (missing.made !== undefined) return;
  for (const one of parts) {
    if (missing.digests.has(one.sha256)) {
      await send("PUT", `/v1/datasets/files/${one.sha256}`, one.part, signal, (sent) => tell(one.at + sent));
    }
  }
  await post(`${place}/parts`, asked, { signal });
}

/** What the gateway lacks for `asked`: {digests}, or {made} where it lacks nothing. */
async function lacking(path, asked, signal) {
  try {
    return { made: await post(path, asked, { signal }) };
  } catch (error) {
    if (!error.document?.missing) throw error;
    return { digests: new Set(error.document.missing) };
  }
}

// XMLHttpRequest, since fetch does not tell how much has gone.
function send(method, path, blob, signal, tell) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    const stop = () => call.abort();
    signal.addEventListener("abort", stop);
    call.open(method, path);
    call.setRequestHeader("Authorization", `Bearer ${key()}`);
    call.setRequestHeader("Content-Type", "application/octet-stream");
    call.upload.addEventListener("progress", (event) => tell(event.loaded));
    call.addEventListener("loadend", () => signal.removeEventListener("abort", stop));
    call.addEventListener("abort", () => reject(new DOMException("The upload was stopped.", "AbortError")));
    call.addEventListener("error", () => reject(new Problem(0, { title: "The upload broke off", detail: "The connection was lost. What has arrived is kept: press Upload again to go on." })));
    call.addEventListener("load", () => {
      if (call.status < 400) resolve(call.responseText ? JSON.parse(call.responseText) : null);
      else reject(refusal(call));
    });
    call.send(blob);
  });
}

function refusal(call) {
  let document = { title: `The gateway answered ${call.status}` };
  try {
    document = JSON.parse(call.responseText);
  } catch {
    // a proxy on the way wrote this answer
  }
  return new Problem(call.status, document, call.getResponseHeader("X-Request-ID"));
}
