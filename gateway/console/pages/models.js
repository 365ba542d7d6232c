// Every model: which version takes the traffic, and how many there are.

import { get } from "../api.js";
import { h } from "../dom.js";
import { number, when } from "../format.js";
import { empty, shown } from "../states.js";

export async function page(root, { signal, title }) {
  title("Models");
  await shown(root, signal, () => get("/v1/models", { signal }), ({ models }) => [
    h("h1", {}, "Models"),
    models.length ? h("section", { class: "panel scroll", tabindex: "0" }, table(models)) : empty("No model yet", "The first start of a service publishes its own."),
  ]);
}

const table = (models) =>
  h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ["Model", "Champion", "Canary", "Versions", "Last change"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, models.map(row)),
  );

function row({ name, versions, aliases }) {
  const { champion, canary } = aliases.aliases;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/models/${name}` }, name)),
    h("td", {}, champion ? `version ${champion.version}` : "none"),
    h("td", {}, canary ? `version ${canary.version}, ${number(canary.weight * 100)} %` : "none"),
    h("td", {}, versions.length),
    h("td", { class: "small" }, aliases.changed_at ? `${when(aliases.changed_at)} by ${aliases.changed_by}${aliases.reason ? `: ${aliases.reason}` : ""}` : "–"),
  );
}
