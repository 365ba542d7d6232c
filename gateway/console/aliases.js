// Changes of what is served. Each is asked for first, in words that say what will be different; each resolves with the
// gateway's answer, or null where the person thought better of it.

import { post, put } from "./api.js";
import { ask } from "./dialogs.js";
import { h } from "./dom.js";
import { number } from "./format.js";

const FOLLOWED = "Services follow within a second, and no request is dropped.";

/** Changes name the generation that was seen: a change made meanwhile elsewhere is a refusal, not a surprise. */
const set = (model, alias, asked) =>
  put(`${model.path}/aliases/${alias}`, { expected_generation: model.aliases.generation, ...asked });

export function promote(model, { version, manifest }) {
  const champion = model.aliases.aliases.champion?.version;
  const force = h("input", { type: "checkbox", name: "force", value: "yes", onchange: (event) => (reason.required = event.target.checked) });
  const reason = h("input", { id: "reason", name: "reason", maxlength: "500", autocomplete: "off" });
  // Only a version that the gate refused can be forced: nobody needs to see this before.
  const forcing = h("label", { class: "inline", hidden: true }, force, "Promote it against the gate's word; the reason stays in the history");
  const body = h(
    "div",
    {},
    h("p", {}, champion ? `${model.name}/${version} takes the place of version ${champion} and answers every request that is not the canary's. ${FOLLOWED}` : `${model.name}/${version} becomes the first champion. ${FOLLOWED}`),
    h("p", {}, champion ? `The gate looks first whether it is worse than version ${champion} on held-out data. One button rolls it back.` : ""),
    Object.entries(manifest.metrics).slice(0, 1).map(([name, metric]) => h("p", { class: "small" }, `Its ${name} is ${number(metric.value)}.`)),
    h("div", { class: "field" }, h("label", { for: "reason" }, "Reason"), reason),
    forcing,
  );
  return ask({
    title: `Promote ${model.name}/${version}?`,
    body,
    button: "Promote",
    act: ({ force: forced, reason: given }) => set(model, "champion", { version, force: forced === "yes", reason: given.trim() }),
    refused: (error) => (forcing.hidden = error.status !== 409 || error.code === "alias-conflict"),
  });
}

export function rollBack(model, version) {
  const { version: present } = model.aliases.aliases.champion;
  return ask({
    title: `Roll ${model.name} back to version ${version}?`,
    body: h("div", {}, h("p", {}, `Version ${version} was champion before and becomes it again, in the place of version ${present}. ${FOLLOWED}`), reasonField()),
    button: "Roll back",
    danger: true,
    act: ({ reason }) => set(model, "champion", { version, reason: reason.trim() || `rollback from ${present}` }),
  });
}

export function startCanary(model, { version }) {
  const { canary } = model.aliases.aliases;
  const share = canary?.version === version ? canary.weight * 100 : 10;
  const out = h("output", { for: "share" }, `${number(share)} %`);
  const range = h("input", { id: "share", name: "share", type: "range", min: "1", max: "100", value: String(share), oninput: (event) => (out.textContent = `${event.target.value} %`) });
  return ask({
    title: `Let ${model.name}/${version} answer a share?`,
    body: h("div", {},
      h("p", {}, `It answers this share of the requests beside the champion${canary && canary.version !== version ? `, in the place of version ${canary.version}` : ""}. Every answer names the version that made it. The gate is not asked.`),
      h("div", { class: "field" }, h("label", { for: "share" }, "Share of the requests: ", out), range),
      reasonField()),
    button: "Set the share",
    act: ({ share: chosen, reason }) => set(model, "canary", { version, weight: Number(chosen) / 100, reason: reason.trim() }),
  });
}

export function endCanary(model) {
  const { version } = model.aliases.aliases.canary;
  return ask({
    title: `End the canary of ${model.name}?`,
    body: h("div", {}, h("p", {}, `Version ${version} answers no more requests; the champion answers all of them. ${FOLLOWED}`), reasonField()),
    button: "End it",
    act: ({ reason }) => set(model, "canary", { version: null, reason: reason.trim() }),
  });
}

export function compare(model, { version }) {
  const champion = model.aliases.aliases.champion.version;
  return ask({
    title: `Compare ${model.name}/${version} with version ${champion}?`,
    body: h("p", {}, `A job measures both on the held-out part of the data that version ${version} was trained on. The gate takes the result into account. Nothing that is served changes.`),
    button: "Compare",
    act: () => post(`${model.path}/versions/${version}/comparisons`),
  });
}

const reasonField = () =>
  h("div", { class: "field" }, h("label", { for: "reason" }, "Reason"), h("input", { id: "reason", name: "reason", maxlength: "500", autocomplete: "off" }));
