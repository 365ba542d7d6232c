// One model: its versions side by side, what serves now, and what may be changed about it.

import { address, get } from "../api.js";
import { compare, endCanary, promote, rollBack, startCanary } from "../aliases.js";
import { h, replace } from "../dom.js";
import { number, when } from "../format.js";
import { policyLine } from "../policy.js";
import { may } from "../session.js";
import { shown } from "../states.js";
import { sideBySide } from "../versions.js";

const SHOWN = 4; // columns at first: more are hard to read

export async function page(root, context) {
  const { params, signal, title } = context;
  title(params.name);
  const show = () => shown(root, signal, () => read(params.name, signal), (model) => draw(model, context, show));
  await show();
}

/** The model with its manifests, their comparisons, and the verdicts of its audits, by version. */
async function read(name, signal) {
  const path = `/v1/models/${encodeURIComponent(name)}`;
  const model = await get(path, { signal });
  const one = async (version) => {
    const [manifest, { comparisons }] = await Promise.all([
      get(`${path}/versions/${version}`, { signal }),
      get(`${path}/versions/${version}/comparisons`, { signal }),
    ]);
    return { version, manifest, comparisons };
  };
  const [versions, audits] = await Promise.all([Promise.all(model.versions.map(one)), verdicts(name, signal)]);
  return { ...model, path, versions: versions.map((row) => ({ ...row, audits: audits.filter((audit) => audit.version === row.version) })) };
}

// Audits need the scope train, and may be of a later gateway than this page's: a model is shown without them.
const verdicts = (name, signal) =>
  may("train") ? get(address("/v1/audits", { model: name, limit: 100 }), { signal }).then((found) => found.audits, () => []) : [];

function draw(model, { query, signal, go }, again) {
  const { champion, canary } = model.aliases.aliases;
  const newest = model.versions.map((row) => row.version).reverse();
  const wanted = [champion?.version, Number(query.get("version")) || null, canary?.version, ...newest].filter((version) => newest.includes(version));
  const chosen = new Set([...new Set(wanted)].slice(0, SHOWN));
  const table = h("div", { class: "scroll", tabindex: "0" });
  const differing = h("input", { type: "checkbox", checked: true, onchange: () => redraw() });
  const all = h("input", { type: "checkbox", onchange: () => redraw() });
  const actions = (row) => versionActions(model, row, again, go);
  const redraw = () => {
    const rows = model.versions.filter((row) => chosen.has(row.version)).reverse();
    replace(table, sideBySide(rows, { champion: champion?.version, canary: canary?.version, onlyDifferences: differing.checked, allFigures: all.checked, actions }));
  };
  const choose = (version) => (event) => {
    if (event.target.checked) chosen.add(version);
    else chosen.delete(version);
    redraw();
  };
  redraw();
  return [
    h("div", { class: "head" }, h("h1", {}, model.name), h("div", { class: "tools" },
      h("a", { class: "button", href: `#/try/${model.name}` }, "Try"),
      h("a", { class: "button", href: `#/train?domain=${model.name}` }, "Train"),
      h("a", { class: "button", href: `#/audits?model=${model.name}` }, "Audits"))),
    serving(model, champion, canary, again, policyLine(model.path, model.name, signal)),
    h(
      "section",
      { class: "panel" },
      h("h2", {}, "Versions"),
      h("fieldset", {}, h("legend", {}, "Side by side"), h("div", { class: "toolbar choices" },
        newest.map((version) => h("label", { class: "inline" }, h("input", { type: "checkbox", checked: chosen.has(version), onchange: choose(version) }), `version ${version}`)),
        h("label", { class: "inline" }, differing, "only settings that differ"),
        h("label", { class: "inline" }, all, "all figures"))),
      table,
    ),
    h("section", { class: "panel" }, h("h2", {}, "History"), history(model.history)),
  ];
}

function serving(model, champion, canary, again, policy) {
  const earlier = earlierChampion(model.history, champion?.version);
  const admin = may("admin");
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Serving"),
    h("p", {}, champion ? `Version ${champion.version} is the champion: it answers ` : "There is no champion.",
      champion && (canary ? `${number((1 - canary.weight) * 100)} % of the requests. Version ${canary.version} is the canary, with ${number(canary.weight * 100)} %.` : "every request.")),
    policy,
    !admin && h("p", { class: "small" }, "This key may not change it: that needs the scope admin."),
    admin && h("div", { class: "actions" },
      earlier && h("button", { type: "button", onclick: () => rollBack(model, earlier).then((done) => done && again()) }, `Roll back to version ${earlier}`),
      canary && h("button", { type: "button", onclick: () => endCanary(model).then((done) => done && again()) }, "End the canary")),
  );
}

/** The champion before the present one, as the command `fourfold models rollback` finds it. */
function earlierChampion(tables, present) {
  const champions = tables.map((table) => table.aliases.champion?.version).filter((version) => version && version !== present);
  return champions.at(-1) ?? null;
}

function versionActions(model, row, again, go) {
  const { champion, canary } = model.aliases.aliases;
  const button = (text, act, primary = false) => h("button", { type: "button", class: primary ? "primary" : null, "aria-label": `${text} version ${row.version}`, onclick: () => act(model, row).then((done) => done && again()) }, text);
  const isChampion = row.version === champion?.version;
  return h(
    "div",
    { class: "actions" },
    may("admin") && !isChampion && button("Promote", promote, !champion || row.version > champion.version),
    may("admin") && !isChampion && button(row.version === canary?.version ? "Change the share of" : "Canary", startCanary),
    may("train") && !isChampion && champion && h("button", { type: "button", "aria-label": `Compare version ${row.version}`, onclick: () => compare(model, row).then((job) => job && go(`#/jobs/${job.id}`)) }, "Compare"),
    may("train") && h("a", { class: "button", href: `#/audits?model=${model.name}&version=${row.version}` }, "Audit"),
  );
}

function history(tables) {
  const text = ({ aliases }) => Object.entries(aliases).map(([name, { version, weight }]) => `${name} ${version}${weight < 1 ? ` (${number(weight * 100)} %)` : ""}`).join(", ");
  return h("div", { class: "scroll", tabindex: "0" }, h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ["When", "Aliases since then", "By", "Reason"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, [...tables].reverse().map((table) => h("tr", {}, h("td", {}, when(table.changed_at)), h("td", {}, text(table) || "none"), h("td", {}, table.changed_by), h("td", {}, table.reason)))),
  ));
}
