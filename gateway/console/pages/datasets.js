// Data sets: the list, and the upload of one.

import { address, get } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, bytes, number } from "../format.js";
import { chosen, dropZone, dropped } from "../picked.js";
import { may } from "../session.js";
import { empty, failure, shown } from "../states.js";
import { isArchive, upload } from "../upload.js";

export const STATE_TONES = { valid: "good", flawed: "warn", invalid: "bad", validating: "" };
const PAGE = 50;

export async function page(root, context) {
  const { query, signal, title, go } = context;
  title("Data sets");
  if (!may("train")) {
    replace(root, h("h1", {}, "Data sets"), empty("This key may not see data sets", "It lacks the scope train."));
    return;
  }
  const kind = query.get("kind");
  const { models } = await get("/v1/models", { signal });
  const kinds = models.map((model) => model.name);
  const list = h("div", {});
  const filter = h("select", { id: "kind-filter", onchange: (event) => go(address("#/datasets", { kind: event.target.value })) },
    h("option", { value: "" }, "any"), kinds.map((name) => h("option", { value: name, selected: name === kind }, name)));
  replace(
    root,
    h("h1", {}, "Data sets"),
    uploadForm(kinds, kind, context),
    h("section", { class: "panel" }, h("div", { class: "toolbar" }, h("div", { class: "field" }, h("label", { for: "kind-filter" }, "For the model"), filter)), list),
  );
  const read = (cursor) => get(address("/v1/datasets", { kind, cursor, limit: PAGE }), { signal });
  await shown(list, signal, () => read(null), (found) => (found.datasets.length ? table(found, read) : empty("No data set yet", "Upload one above.")));
}

function table(found, read) {
  const rows = h("tbody", {}, found.datasets.map(row));
  const place = h("div", { class: "actions" });
  const offer = (cursor) => replace(place, cursor !== null && h("button", { type: "button", onclick: () => more(cursor) }, "Older"));
  const more = async (cursor) => {
    try {
      const next = await read(cursor);
      rows.append(...next.datasets.map(row));
      offer(next.next_cursor);
    } catch (error) {
      replace(place, failure(error, () => more(cursor)));
    }
  };
  offer(found.next_cursor);
  const names = ["Name", "For", "State", "Files", "Size", "Made"];
  return [h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), rows)), place];
}

const row = (set) =>
  h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/datasets/${set.digest}` }, set.name), h("div", { class: "small mono" }, set.digest.slice(0, 12))),
    h("td", {}, set.kind),
    h("td", {}, h("span", { class: `tag ${STATE_TONES[set.state]}` }, set.state)),
    h("td", {}, number(set.files)),
    h("td", {}, bytes(set.bytes)),
    h("td", { class: "small" }, ago(set.created_at)),
  );

function uploadForm(kinds, kind, { signal, go }) {
  let files = [];
  let running = null;
  const name = h("input", { id: "name", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}", title: "letters, digits, dot, dash, underscore", autocomplete: "off" });
  const target = h("select", { id: "kind" }, kinds.map((one) => h("option", { value: one, selected: one === kind }, one)));
  const told = h("p", { class: "small wide", role: "status" }, "Nothing is chosen yet.");
  const state = h("div", { role: "status" });
  const folder = h("input", { id: "folder", type: "file", webkitdirectory: true, onchange: () => take(chosen([folder])) });
  const single = h("input", { id: "files", type: "file", multiple: true, onchange: () => take(chosen([single])) });
  const send = h("button", { type: "submit", class: "primary" }, "Upload");
  const stop = h("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const place = h(
    "div",
    { class: "drop" },
    h("p", { class: "wide" }, "Drop a folder, files, or one archive (zip, tar) here, or choose:"),
    h("div", { class: "fields" },
      h("div", { class: "field" }, h("label", { for: "folder" }, "A folder"), folder),
      h("div", { class: "field" }, h("label", { for: "files" }, "Files or an archive"), single)),
    told,
  );
  const take = (found) => {
    files = found;
    const size = files.reduce((sum, { file }) => sum + file.size, 0);
    replace(told, files.length === 0 ? "Nothing is chosen yet." : isArchive(files) ? `The archive ${files[0].path}, ${bytes(size)}.` : `${number(files.length)} files, ${bytes(size)}.`);
    // The folder's or the archive's name is what most would give.
    if (!name.value && files.length) name.value = (files[0].file.webkitRelativePath.split("/")[0] || files[0].path.split(".")[0]).replace(/[^A-Za-z0-9._-]/g, "-").slice(0, 64);
  };
  dropZone(place, async (transfer) => take(await dropped(transfer)));
  const form = h(
    "form",
    { class: "panel" },
    h("h2", {}, "Upload"),
    place,
    h("div", { class: "fields spaced" },
      h("div", { class: "field" }, h("label", { for: "kind" }, "For the model"), target),
      h("div", { class: "field" }, h("label", { for: "name" }, "Name"), name)),
    state,
    h("div", { class: "actions" }, send, stop),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (files.length === 0) {
      replace(state, h("p", { class: "wrong" }, "Choose or drop what to upload first."));
      return;
    }
    running = new AbortController();
    signal.addEventListener("abort", () => running.abort());
    [send.disabled, stop.hidden] = [true, false];
    try {
      const bar = progress(state);
      const made = await upload(files, { kind: target.value, name: name.value, signal: running.signal, tell: bar });
      if (!signal.aborted) go(`#/datasets/${made.digest}`);
    } catch (error) {
      if (error.name === "AbortError") replace(state, h("p", { class: "small" }, "Stopped. What has arrived is kept: Upload goes on after it."));
      else replace(state, failure(error));
    } finally {
      [send.disabled, stop.hidden] = [false, true];
    }
  });
  return form;
}

/** A bar in `place`; returns what tells it of bytes. */
function progress(place) {
  const words = h("span", { class: "small" });
  const bar = h("progress", { max: "1", "aria-label": "Upload" });
  replace(place, bar, words);
  const stages = { reading: "Reading for digests", sending: "Sending" };
  return (stage, done, total) => {
    bar.value = total ? done / total : 1;
    words.textContent = `${stages[stage]}: ${bytes(done)} of ${bytes(total)}`;
  };
}
