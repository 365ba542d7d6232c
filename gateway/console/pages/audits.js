// Audits: start one, and what each found.

import { address, get, post } from "../api.js";
import { h, refresh, replace } from "../dom.js";
import { ago } from "../format.js";
import { may } from "../session.js";
import { empty, failure, repeat, shown } from "../states.js";
import { verdictTag } from "../verdicts.js";

const PAGE = 25;
const LOOK_SECONDS = 3;
const CHECKS = {
  groups: "Groups: is it as good for every part of the data?",
  robustness: "Robustness: what do small changes of the input do?",
  landscape: "Landscape: how did the training leave it, beside the baseline?",
  backdoor: "Backdoor: does something in the data or the model act as a trigger?",
};

export async function page(root, context) {
  const { query, signal, title } = context;
  title("Audits");
  if (!may("train")) {
    replace(root, h("h1", {}, "Audits"), empty("This key may not audit", "It lacks the scope train."));
    return;
  }
  const chosen = { model: query.get("model"), version: query.get("version") };
  const { models } = await get("/v1/models", { signal });
  const list = h("div", {});
  replace(
    root,
    h("h1", {}, "Audits"),
    h("p", {}, "An audit examines one version and says, check by check, whether it passes, whether somebody should look, or that it should not be promoted."),
    models.length > 0 && await startForm(models, chosen, context),
    h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", {}, heading(chosen)), (chosen.model || chosen.version) && h("a", { href: "#/audits" }, "All audits")), list),
  );
  const read = (cursor) => get(address("/v1/audits", { ...chosen, cursor, limit: PAGE }), { signal });
  let older = [];
  let first = null;
  const draw = (found) => {
    first = found;
    const audits = [first, ...older].flatMap((part) => part.audits);
    const cursor = (older.at(-1) ?? first).next;
    return audits.length ? [table(audits), cursor && h("div", { class: "actions" }, h("button", { type: "button", "data-key": "older", onclick: () => more(cursor) }, "Older"))] : empty("No audit yet", "Start one above.");
  };
  const more = async (cursor) => {
    try {
      older = [...older, await read(cursor)];
      replace(list, draw(first));
    } catch (error) {
      list.append(failure(error, () => more(cursor)));
    }
  };
  await shown(list, signal, () => read(null), draw);
  repeat(signal, LOOK_SECONDS, async () => refresh(list, draw(await read(null))));
}

const heading = ({ model, version }) => (model ? `Of ${model}${version ? `/${version}` : ""}` : "All");

function table(audits) {
  const names = ["Version", "Verdict", "Checks", "Beside", "Made"];
  const verdict = (audit) => (audit.verdict ? verdictTag(audit.verdict) : h("span", { class: "tag" }, audit.state));
  const row = (audit) =>
    h("tr", {},
      h("th", { scope: "row" }, h("a", { href: `#/audits/${audit.id}` }, `${audit.model}/${audit.version}`), h("div", { class: "small mono" }, audit.id.slice(0, 12))),
      h("td", {}, verdict(audit)),
      h("td", {}, Object.entries(audit.checks).map(([name, found]) => h("div", {}, `${name} `, verdictTag(found)))),
      h("td", {}, audit.baseline ? `version ${audit.baseline}` : "–"),
      h("td", { class: "small" }, ago(audit.created_at)));
  return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, audits.map(row))));
}

async function startForm(models, chosen, { signal, go }) {
  const model = models.find((one) => one.name === chosen.model) ?? models[0];
  const { datasets } = await get(address("/v1/datasets", { kind: model.name, limit: 200 }), { signal });
  const usable = datasets.filter(({ state }) => state === "valid" || state === "flawed");
  const newest = [...model.versions].reverse();
  const version = Number(chosen.version) || newest[0];
  const champion = model.aliases.aliases.champion?.version;
  const choice = (id, label, options, value, properties = {}) =>
    h("div", { class: "field" }, h("label", { for: id }, label), h("select", { id, name: id, ...properties }, options.map(([key, text]) => h("option", { value: key, selected: String(key) === String(value) }, text))));
  const place = h("div", {});
  const button = h("button", { type: "submit", class: "primary" }, "Start the audit");
  const form = h(
    "form",
    { class: "panel" },
    h("h2", {}, "Start an audit"),
    h("div", { class: "fields" },
      choice("model", "Model", models.map(({ name }) => [name, name]), model.name, { onchange: (event) => go(address("#/audits", { model: event.target.value })) }),
      choice("version", "Version", newest.map((one) => [one, one === champion ? `${one}, the champion` : one]), version),
      choice("baseline", "Beside", [["", "no other version"], ...newest.map((one) => [one, `version ${one}`])], champion !== version ? champion : ""),
      choice("dataset", "On the data set", [["", "what it was trained on"], ...usable.map((one) => [one.digest, one.name])], ""),
      choice("budget", "Budget", [["quick", "quick: minutes"], ["full", "full: longer, surer"]], "quick")),
    h("fieldset", {}, h("legend", {}, "Checks"), Object.entries(CHECKS).map(([name, text]) => h("label", { class: "inline" }, h("input", { type: "checkbox", name: "checks", value: name, checked: true }), text))),
    place,
    h("div", { class: "actions" }, button),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const given = new FormData(form);
    const asked = {
      model: given.get("model"),
      version: Number(given.get("version")),
      baseline: given.get("baseline") ? Number(given.get("baseline")) : null,
      dataset: given.get("dataset") || null,
      checks: given.getAll("checks"),
      budget: given.get("budget"),
    };
    try {
      go(`#/audits/${(await post("/v1/audits", asked)).id}`);
    } catch (error) {
      replace(place, failure(error));
      button.disabled = false;
    }
  });
  return form;
}
