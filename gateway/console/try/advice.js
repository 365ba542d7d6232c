// What is advised on a module: sizes, candidates, call sites, and the artefacts to take away.

import { save } from "../api.js";
import { h, replace } from "../dom.js";
import { number } from "../format.js";
import { failure, loading } from "../states.js";

const MOST_SITES = 500; // rows of the table; the whole answer has all
const MOST_SHOWN = 200_000; // characters of annotated IR on the page

/** Elements for an AdviceResponse. `stem` names the files; `annotate()` asks for the annotated IR. */
export function advice(found, stem, annotate) {
  return [summary(found, stem, annotate), h("div", { class: "columns" }, candidates(found), functions(found)), sites(found)];
}

function summary(found, stem, annotate) {
  const { text_stock: stock, text_advised: advised } = found;
  const saved = stock - advised;
  const share = stock ? ` (${((100 * saved) / stock).toFixed(2)} %)` : "";
  const place = h("div", {});
  const annotated = async () => {
    replace(place, loading("Marking the IR…"));
    try {
      const { artefact } = await annotate();
      const text = artefact.content;
      replace(
        place,
        h("h3", {}, "Annotated IR"),
        h("p", { class: "small" }, `${number(artefact.calls_marked)} calls are marked; compiled, it has ${number(artefact.text)} bytes of machine code.`),
        h("button", { type: "button", onclick: () => save(new Blob([text]), `${stem}.ll`) }, "Download the annotated IR"),
        h("pre", { class: "log", tabindex: "0", "data-annotated": "" }, text.slice(0, MOST_SHOWN), text.length > MOST_SHOWN && "\n…"),
      );
    } catch (error) {
      if (error.name !== "AbortError") replace(place, failure(error, annotated));
    }
  };
  const { artefact } = found;
  const replay = () => save(new Blob([artefact.content], { type: artefact.media_type }), `${stem}-replay.txt`);
  const located = () => save(new Blob([found.module_ir]), `${stem}-located.ll`);
  return h(
    "section",
    { class: "panel", "aria-label": "Advice" },
    h("p", { class: "headline" }, h("strong", { "data-stock": "" }, number(stock)), " → ", h("strong", { "data-advised": "" }, number(advised)), " bytes of machine code"),
    h("p", { "data-winner": "" }, saved > 0 ? `${number(saved)} bytes${share} saved by the candidate ${found.winner}.` : "No candidate made it smaller than stock: nothing to change."),
    h("p", { class: "small" }, `${found.model}, ${number(found.compiles)} compiles, ${number(found.cpu_seconds)} s of processor time.`),
    !found.located && h("p", { class: "notice" }, "The input had no debug locations and was given some: the replay file's places are of the located module."),
    h(
      "div",
      { class: "actions" },
      artefact.content ? h("button", { type: "button", class: "primary", onclick: replay }, "Download the replay file") : null,
      found.module_ir && h("button", { type: "button", onclick: located }, "Download the located module"),
      h("button", { type: "button", onclick: annotated }, "Show annotated IR"),
    ),
    artefact.content && artefact.options.length > 0 && [h("p", { class: "small" }, "What clang 22 needs to be told to decide the same:"), h("pre", { class: "log", tabindex: "0", "data-options": "" }, `clang ${artefact.options.join(" ").replaceAll("FILE", `${stem}-replay.txt`)}`)],
    place,
  );
}

const table = (name, heads, rows) =>
  h(
    "div",
    { class: "scroll", tabindex: "0" },
    h("table", { [`data-${name}`]: "" }, h("thead", {}, h("tr", {}, heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))), h("tbody", {}, rows)),
  );

function candidates(found) {
  const row = ({ name, text }) => h("tr", {}, h("th", { scope: "row" }, name, " ", name === found.winner && h("span", { class: "tag good" }, "wins")), h("td", { class: "number" }, number(text)), h("td", { class: "number" }, change(text - found.text_stock)));
  return h("section", { class: "panel", "aria-label": "Candidates" }, h("h2", {}, "Candidates"), table("candidates", [["Candidate"], ["Bytes", "number"], ["Change", "number"]], found.candidates.map(row)));
}

function functions(found) {
  const row = ({ name, stock, advised }) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), h("td", { class: "number" }, number(stock)), h("td", { class: "number" }, advised ? number(advised) : "gone"), h("td", { class: "number" }, change(advised - stock)));
  const content = found.functions.length ? table("functions", [["Function"], ["Before", "number"], ["After", "number"], ["Change", "number"]], found.functions.map(row)) : h("p", { class: "muted" }, "No function's size changed.");
  return h("section", { class: "panel", "aria-label": "Functions" }, h("h2", {}, "Functions whose size changed"), content);
}

function sites(found) {
  const place = h("div", {});
  const differs = (site) => site.stock !== null && site.stock !== site.inline;
  const count = found.sites.filter(differs).length;
  const only = h("input", { type: "checkbox", onchange: fill });
  const decision = (inline) => (inline ? "inline" : "leave");
  const row = (site) =>
    h(
      "tr",
      { class: differs(site) && "differs" },
      h("td", {}, h("code", {}, `${site.file}:${site.line}:${site.column}`)),
      h("td", {}, h("code", {}, site.callee), " into ", h("code", {}, site.caller)),
      h("td", {}, decision(site.inline)),
      h("td", {}, site.stock === null ? "–" : decision(site.stock)),
      h("td", { class: "number" }, site.confidence === null ? "–" : `${(100 * site.confidence).toFixed(0)} %`),
    );
  function fill() {
    const shown = only.checked ? found.sites.filter(differs) : found.sites;
    replace(
      place,
      shown.length ? table("sites", [["Place"], ["Call"], ["Advice"], ["Stock"], ["Confidence", "number"]], shown.slice(0, MOST_SITES).map(row)) : h("p", { class: "muted" }, "There is none."),
      shown.length > MOST_SITES && h("p", { class: "small" }, `The first ${number(MOST_SITES)} of ${number(shown.length)}.`),
    );
  }
  fill();
  return h(
    "section",
    { class: "panel", "aria-label": "Call sites" },
    h("div", { class: "head" }, h("h2", {}, `Call sites: ${number(found.sites.length)}`), h("label", { class: "inline" }, only, `Only those where the advice differs from stock (${number(count)})`)),
    place,
    h("p", { class: "small" }, "Confidence is the policy's probability of the decision, where it was asked."),
  );
}

const change = (bytes) => (bytes > 0 ? `+${number(bytes)}` : bytes < 0 ? `−${number(-bytes)}` : "0");
