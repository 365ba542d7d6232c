// Versions of a model side by side: one column each, in rows what they are, how good, and how they differ.

import { h } from "./dom.js";
import { interval, number, when, words } from "./format.js";
import { verdictTag } from "./verdicts.js";

const FIGURES = 8; // at first: a domain names its most telling ones first, and some have forty

/** `rows` are {version, manifest, comparisons, audits}; `actions(row)` makes what stands under each. */
export function sideBySide(rows, { champion, canary, onlyDifferences, allFigures, actions }) {
  if (rows.length === 0) return h("p", { class: "muted" }, "Choose a version.");
  const cells = (of) => rows.map((row) => h("td", {}, of(row)));
  const line = (name, of, properties = {}) => h("tr", properties, h("th", { scope: "row" }, name), cells(of));
  const part = (name) => h("tr", {}, h("th", { scope: "colgroup", colspan: rows.length + 1, class: "part" }, name));
  const role = ({ version }) => (version === champion ? h("span", { class: "tag good" }, "champion") : version === canary && h("span", { class: "tag warn" }, "canary"));
  return h(
    "table",
    { class: "versions" },
    h("thead", {}, h("tr", {}, h("td", {}), rows.map((row) => h("th", { scope: "col" }, `Version ${row.version} `, role(row))))),
    h(
      "tbody",
      {},
      line("What to do", actions),
      part("Made"),
      line("Created", ({ manifest }) => when(manifest.created)),
      line("By job", ({ manifest: { job } }) => (job ? h("a", { href: `#/jobs/${job}` }, h("code", {}, job.slice(0, 12))) : "–")),
      line("From data set", ({ manifest: { dataset_digest: digest } }) => (digest ? h("a", { href: `#/datasets/${digest}` }, h("code", {}, digest.slice(0, 12))) : "–")),
      line("Seed, device", ({ manifest: { seed, device } }) => `${seed ?? "–"}, ${device ?? "–"}`),
      line("Code", ({ manifest: { code_revision: revision } }) => h("code", {}, revision?.slice(0, 12) ?? "–")),
      part("Figures on its held-out split, with 95 % intervals"),
      line("Measured on", ({ manifest }) => h("span", { class: "small" }, manifest.metrics_split || "–")),
      names(rows, "metrics").slice(0, allFigures ? undefined : FIGURES).map((name) => line(figureName(rows, name), ({ manifest: { metrics } }) => (metrics[name] ? interval(metrics[name]) : "–"))),
      part("Beside a champion, on the same held-out data"),
      line("Difference", ({ comparisons }) => (comparisons.length ? comparisons.map(difference) : "not compared")),
      part("Audits"),
      line("Verdicts", ({ audits }) => (audits.length ? audits.slice(0, 3).map((audit) => h("div", {}, h("a", { href: `#/audits/${audit.id}` }, when(audit.created_at)), " ", audit.verdict ? verdictTag(audit.verdict) : audit.state)) : "not audited")),
      part("Settings"),
      settings(rows, onlyDifferences, line),
    ),
  );
}

function names(rows, member) {
  return [...new Set(rows.flatMap(({ manifest }) => Object.keys(manifest[member])))];
}

function figureName(rows, name) {
  const { higher_is_better: higher, description } = rows.map(({ manifest }) => manifest.metrics[name]).find(Boolean);
  return [name, h("span", { class: "small" }, higher ? " ↑ higher is better" : " ↓ lower is better"), description && h("div", { class: "small" }, description)];
}

// The gate's rule in a word: the interval of the paired difference must reach to the better side of zero.
function difference({ champion, metric, difference: { value, low, high, higher_is_better: higher } }) {
  const sign = higher ? 1 : -1;
  const bounds = low === null || high === null ? null : [low * sign, high * sign].sort((one, other) => one - other);
  const [word, tone] = bounds === null ? ["no interval", ""] : bounds[1] < 0 ? ["worse", "bad"] : bounds[0] > 0 ? ["better", "good"] : ["no clear difference", ""];
  return h("div", {}, h("span", { class: `tag ${tone}` }, word), ` ${metric} ${value > 0 ? "+" : ""}${interval({ value, low, high })}, beside version ${champion}`);
}

function settings(rows, onlyDifferences, line) {
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : typeof value === "number" ? number(value) : JSON.stringify(value));
  const lines = names(rows, "config").sort().map((name) => {
    const differs = new Set(rows.map(({ manifest }) => JSON.stringify(manifest.config[name]))).size > 1;
    return { differs, element: line(words(name), ({ manifest }) => text(manifest.config[name]), { class: differs && "differs" }) };
  });
  const kept = lines.filter(({ differs }) => differs || !onlyDifferences || rows.length === 1);
  if (kept.length === 0) return line(h("span", { class: "muted" }, "no difference"), () => "");
  return kept.map(({ element }) => element);
}
