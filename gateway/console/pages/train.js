// Submit a training, or another job on a data set: the form is made from the settings in /openapi.json.

import { address, get, post } from "../api.js";
import { h, replace } from "../dom.js";
import { words } from "../format.js";
import { SchemaForm } from "../schema_form.js";
import { may } from "../session.js";
import { empty, failure, shown } from "../states.js";

// Of every recipe, and seldom changed: below the domain's own.
const KIT = ["bad_files", "seed", "device", "threads", "processes"];

export async function page(root, context) {
  const { signal, title } = context;
  title("Train");
  if (!may("train")) {
    replace(root, h("h1", {}, "Train a model"), empty("This key may not train", "It lacks the scope train."));
    return;
  }
  await shown(root, signal, () => get("/openapi.json", { signal }), (document) => draw(submissions(document), context));
}

/** Every path that takes a data set and settings and makes a job: [{domain, name, path, settings}]. */
function submissions({ paths, components }) {
  const found = [];
  for (const [path, { post: operation }] of Object.entries(paths)) {
    const reference = operation?.requestBody?.content?.["application/json"]?.schema?.$ref;
    const { dataset, config } = components.schemas[reference?.split("/").pop()]?.properties ?? {};
    const [, version, domain, name] = path.split("/");
    if (version === "v1" && dataset && config?.properties) found.push({ domain, name, path, settings: config.properties });
  }
  // A training first: it is what most come for.
  return found.sort((one, other) => (other.name === "training-jobs") - (one.name === "training-jobs"));
}

async function draw(found, { query, signal, go }) {
  if (found.length === 0) return empty("No service answers", "The settings come from the services, and none is up.");
  const domains = [...new Set(found.map((one) => one.domain))];
  const domain = domains.includes(query.get("domain")) ? query.get("domain") : domains[0];
  const kinds = found.filter((one) => one.domain === domain);
  const chosen = kinds.find((one) => one.name === query.get("what")) ?? kinds[0];
  const { datasets } = await get(address("/v1/datasets", { kind: domain, limit: 200 }), { signal });
  const usable = datasets.filter((one) => one.state === "valid" || one.state === "flawed");
  const change = (name) => (event) => go(address("#/train", { domain, ...(name === "what" && { dataset: query.get("dataset") }), [name]: event.target.value }));
  const choice = (id, label, options, value, properties) =>
    h("div", { class: "field" }, h("label", { for: id }, label), h("select", { id, ...properties }, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
  const form = new SchemaForm(chosen.settings, KIT);
  const place = h("div", {});
  const button = h("button", { type: "submit", class: "primary", disabled: usable.length === 0 }, chosen.name === "training-jobs" ? "Train" : "Start");
  // One key for one form: a second press, or a repeat after a lost answer, makes no second job.
  let repetition = random();
  const element = h(
    "form",
    { class: "panel", onsubmit: submit, oninput: () => (repetition = random()) },
    h(
      "div",
      { class: "fields" },
      choice("domain", "Model", domains.map((name) => [name, name]), domain, { onchange: change("domain") }),
      choice("what", "What", kinds.map((one) => [one.name, one.name === "training-jobs" ? "training" : words(one.name)]), chosen.name, { onchange: change("what") }),
      usable.length
        ? choice("dataset", "Data set", usable.map((one) => [one.digest, `${one.name} (${one.state}, ${one.files} files)`]), query.get("dataset") ?? usable[0].digest, { name: "dataset" })
        : h("div", { class: "field" }, empty(`No data set for ${domain}`, "", h("a", { class: "button", href: "#/datasets" }, "Upload one"))),
    ),
    h("h2", {}, "Settings"),
    h("p", { class: "small" }, "What you leave as it is takes the domain's default."),
    form.element,
    place,
    h("div", { class: "actions" }, button),
  );

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    replace(place);
    form.mark([]);
    try {
      const asked = { dataset: element.elements.dataset.value, config: form.values() };
      const made = await post(chosen.path, asked, { headers: { "Idempotency-Key": repetition } });
      go(`#/jobs/${made.id}`);
    } catch (error) {
      form.mark(error.document?.errors ?? []);
      replace(place, failure(error));
      button.disabled = false;
    }
  }
  return [h("h1", {}, "Train a model"), element];
}

// crypto.randomUUID is there on https and localhost alone.
const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
