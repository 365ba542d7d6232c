// What a version must have before it becomes champion: the audits that the model's policy asks for.

import { get, put } from "./api.js";
import { ask } from "./dialogs.js";
import { h, replace } from "./dom.js";
import { may } from "./session.js";

const CHECKS = ["groups", "robustness", "landscape", "backdoor"];
const VERDICTS = { passes: "passes", "look-at-this": "look at this", "not-assessed": "not assessed" };

/** A line that tells the policy, with a button for who may change it. */
export function policyLine(path, name, signal) {
  const place = h("div", {});
  const show = async () => {
    const { audit } = await get(`${path}/policy`, { signal });
    const text = audit.required
      ? `A new champion needs an audit of ${audit.checks.join(", ")} that says ${audit.accept.map((verdict) => `“${VERDICTS[verdict] ?? verdict}”`).join(" or ")}.`
      : "No audit is asked for before a promotion.";
    replace(place, h("p", {}, text, " ", may("admin") && h("button", { type: "button", onclick: () => change(path, name, audit).then((done) => done && show()) }, "Change the policy")));
  };
  show().catch((error) => error.name === "AbortError" || replace(place, h("p", { class: "small" }, `The policy could not be read: ${error.message}`)));
  return place;
}

function change(path, name, audit) {
  const required = h("input", { type: "checkbox", name: "required", value: "yes", checked: audit.required });
  const choices = (legend, field, options, chosen) =>
    h("fieldset", {}, h("legend", {}, legend), options.map(([value, text]) => h("label", { class: "inline" }, h("input", { type: "checkbox", name: field, value, checked: chosen.includes(value) }), text)));
  return ask({
    title: `What must a champion of ${name} have?`,
    body: h("div", {},
      h("p", {}, "The champion of now stays. Every later promotion is asked for it, and can still be forced with a reason."),
      h("label", { class: "inline spaced" }, required, "An audit is required"),
      choices("Of these checks", "checks", CHECKS.map((check) => [check, check]), audit.checks),
      choices("Each of which says", "accept", Object.entries(VERDICTS), audit.accept)),
    button: "Set the policy",
    act: (_, form) => put(`${path}/policy`, { audit: { required: required.checked, checks: form.getAll("checks"), accept: form.getAll("accept") } }),
  });
}
