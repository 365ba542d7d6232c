// One data set: what its domain found in it, live while it is validated.

import { get, request } from "../api.js";
import { ask } from "../dialogs.js";
import { h, refresh } from "../dom.js";
import { bytes, number, when, words } from "../format.js";
import { repeat, shown } from "../states.js";
import { STATE_TONES } from "./datasets.js";

const LOOK_SECONDS = 1;
const MEANING = {
  validating: "Its domain looks through it now. Trainings wait for that.",
  valid: "Every file can be used.",
  flawed: "It can be used without the files named below: set “Bad files” to exclude in the form of the training.",
  invalid: "It cannot be used. Mend what is named below, and upload it again: only what has changed is sent.",
};

export async function page(root, { params, signal, title, go }) {
  title("Data set");
  const read = () => get(`/v1/datasets/${encodeURIComponent(params.reference)}`, { signal });
  await shown(root, signal, read, (first) => {
    title(first.name);
    const place = h("div", {});
    refresh(place, draw(first, go));
    const judged = new AbortController();
    signal.addEventListener("abort", () => judged.abort());
    if (first.state === "validating") {
      repeat(judged.signal, LOOK_SECONDS, async () => {
        const found = await read();
        refresh(place, draw(found, go));
        if (found.state !== "validating") judged.abort();
      });
    }
    return place;
  });
}

function draw(set, go) {
  const fact = (name, ...value) => [h("dt", {}, name), h("dd", {}, value)];
  const usable = set.state === "valid" || set.state === "flawed";
  return [
    h("div", { class: "head" }, h("h1", {}, set.name, " ", h("span", { class: `tag ${STATE_TONES[set.state]}` }, set.state)), h("div", { class: "tools" },
      usable && h("a", { class: "button primary", href: `#/train?domain=${set.kind}&dataset=${set.digest}` }, "Train on it"),
      h("button", { type: "button", "data-key": "remove", onclick: () => remove(set, go) }, "Remove"))),
    h("section", { class: "panel" }, set.state === "validating" && h("progress", { "aria-label": "Validation" }), h("p", { role: "status" }, MEANING[set.state]),
      h("dl", {},
        fact("For the model", h("a", { href: `#/models/${set.kind}` }, set.kind)),
        fact("Files", `${number(set.files)}, ${bytes(set.bytes)}`),
        fact("Digest", h("code", {}, set.digest)),
        fact("Made", `${when(set.created_at)} by ${set.created_by}`),
        Object.entries(set.report.counts ?? {}).map(([name, count]) => fact(words(name), number(count))))),
    findings(set.report.findings ?? []),
  ];
}

function findings(found) {
  if (found.length === 0) return null;
  const row = ({ file, line, problem }) => h("tr", {}, h("th", { scope: "row", class: "mono" }, file), h("td", {}, line ?? ""), h("td", {}, problem));
  return h("section", { class: "panel" }, h("h2", {}, found.length === 1 ? "One finding" : found.length < 100 ? `${found.length} findings` : "The first hundred findings"), h("div", { class: "scroll", tabindex: "0" },
    h("table", {}, h("thead", {}, h("tr", {}, ["File", "Line", "What is wrong"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, found.map(row)))));
}

async function remove(set, go) {
  const done = await ask({
    title: `Remove ${set.name}?`,
    body: h("p", {}, `${number(set.files)} files, ${bytes(set.bytes)}, are deleted where no other data set holds them. A data set that a job works on, or that a model was made of, is refused.`),
    button: "Remove",
    danger: true,
    act: () => request("DELETE", `/v1/datasets/${set.digest}`).then(() => true),
  });
  if (done) go("#/datasets");
}
