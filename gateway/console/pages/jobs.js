// The list of jobs, newest first, by state and domain; older ones a page at a time.

import { address, get } from "../api.js";
import { h, refresh, replace } from "../dom.js";
import { STATES, jobTable } from "../jobs.js";
import { may } from "../session.js";
import { empty, failure, repeat, shown } from "../states.js";

const PAGE = 25;
const LOOK_SECONDS = 3;

export async function page(root, { query, signal, title, go }) {
  title("Jobs");
  if (!may("train")) {
    replace(root, h("h1", {}, "Jobs"), empty("This key may not see jobs", "It lacks the scope train."));
    return;
  }
  const chosen = { state: query.get("state"), domain: query.get("domain") };
  const list = h("div", {});
  const older = h("div", { class: "actions" });
  const { models } = await get("/v1/models", { signal });
  replace(
    root,
    h("div", { class: "head" }, h("h1", {}, "Jobs"), h("a", { class: "button primary", href: "#/train" }, "Train a model")),
    h("div", { class: "toolbar" }, choice("state", "State", STATES, chosen, go), choice("domain", "Model", models.map((model) => model.name), chosen, go)),
    h("section", { class: "panel" }, list, older),
  );
  const read = (cursor) => get(address("/v1/jobs", { ...chosen, cursor, limit: PAGE }), { signal });
  let earlier = []; // what was asked for beyond the first page
  let first = null;
  const draw = (found) => {
    first = found;
    offerOlder((earlier.at(-1) ?? first).next_cursor);
    const jobs = [first, ...earlier].flatMap((part) => part.jobs);
    // A new job pushes the last of the first page into what was read before.
    const once = [...new Map(jobs.map((job) => [job.id, job])).values()];
    return once.length ? jobTable(once) : nothing(chosen);
  };
  const offerOlder = (cursor) => replace(older, cursor && h("button", { type: "button", onclick: () => more(cursor) }, "Older"));
  const more = async (cursor) => {
    try {
      earlier = [...earlier, await read(cursor)];
      replace(list, draw(first));
    } catch (error) {
      replace(older, failure(error, () => more(cursor)));
    }
  };
  await shown(list, signal, () => read(null), draw);
  repeat(signal, LOOK_SECONDS, async () => refresh(list, draw(await read(null))));
}

function choice(name, label, values, chosen, go) {
  const choose = (event) => go(address("#/jobs", { ...chosen, [name]: event.target.value }));
  return h(
    "div",
    { class: "field" },
    h("label", { for: name }, label),
    h("select", { id: name, onchange: choose }, h("option", { value: "" }, "any"), values.map((value) => h("option", { value, selected: chosen[name] === value }, value))),
  );
}

const nothing = (chosen) =>
  chosen.state || chosen.domain
    ? empty("No such job", "Nothing matches what was chosen.", h("a", { class: "button", href: "#/jobs" }, "Show all"))
    : empty("No job yet", "Upload a data set, then train on it.", h("a", { class: "button", href: "#/datasets" }, "Data sets"));
