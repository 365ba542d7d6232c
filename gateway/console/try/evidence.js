// What the service says of an account: probability, label, evidence, and the explanation with how far it can be trusted.

import { h } from "../dom.js";
import { number, words } from "../format.js";
import { colour, draw, plain } from "../plot.js";

export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

/** "bot", "human" or "abstain" as a tag. */
export const verdict = (label) => label && h("span", { class: `tag ${{ bot: "bad", human: "good" }[label] ?? "warn"}`, "data-label": "" }, label);

/** One account's score. */
export function score(found, prior) {
  const { evidence } = found;
  const list = (names) => (names.length ? names.map(words).join(", ") : "none");
  const row = (name, ...told) => [h("dt", {}, name), h("dd", {}, told)];
  return h(
    "section",
    { class: "panel", "aria-label": "Score" },
    found.out_of_distribution && h("p", { class: "notice", "data-unusual": "" }, `Unlike the training accounts: ${found.distance.toFixed(2)} times as far from them as 99 % of them are. Trust the figures less.`),
    evidence.declared_automated && h("p", { class: "notice", "data-declared": "" }, "The platform itself says that this account is automated; the score does not look at it."),
    found.probability !== null && h("p", { class: "headline" }, h("strong", { "data-probability": "" }, percent(found.adjusted_probability)), " a bot ", verdict(found.label)),
    h(
      "dl",
      {},
      found.probability !== null && row("By the training's share of bots", h("span", { "data-unadjusted": "" }, percent(found.probability))),
      found.probability !== null && row("By your share of bots", `${percent(found.adjusted_probability)}, expecting ${percent(prior)}`),
      found.stance && row("Stance", `${found.stance.label} (${Object.entries(found.stance.probabilities).map(([name, share]) => `${name} ${percent(share)}`).join(", ")})`),
      row("Head that answered", evidence.view),
      row("Evidence used", h("span", { "data-used": "" }, list(evidence.used))),
      row("Missing", h("span", { "data-missing": "" }, list(evidence.missing))),
      row("Texts", evidence.text ? "looked at" : "not looked at"),
      row("Distance", `${number(found.distance)} (above 1 is out of distribution)`),
    ),
  );
}

/** Bars of an explanation, a table of the same, and its fidelity. */
export function explanation(found) {
  const bars = h("div", { "data-bars": "" });
  const shown = [...found.contributions].reverse(); // plotly's first is at the bottom
  const trace = () => ({
    type: "bar",
    orientation: "h",
    x: shown.map((item) => item.contribution),
    y: shown.map((item) => plain(words(item.property))),
    error_x: { type: "data", array: shown.map((item) => item.error), color: colour("text"), thickness: 1 },
    marker: { color: shown.map((item) => colour(item.contribution > 0 ? "bad" : "good")) },
    hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
  });
  const axes = { xaxis: { title: { text: "← human · logit · bot →" } }, margin: { l: 8, r: 16, t: 8, b: 48 } };
  const [first] = found.contributions;
  const label = first ? `What speaks for a bot and what against; the strongest is ${words(first.property)} with ${first.contribution.toFixed(2)}. The table below has all.` : "Nothing speaks for a bot or against.";
  draw(bars, () => [trace()], axes, { label, height: 90 + 28 * shown.length }).catch((error) => (bars.textContent = error.message));
  const cell = (value) => h("td", { class: "number" }, value);
  const row = (item) => h("tr", {}, h("th", { scope: "row" }, words(item.property)), cell(item.value.toFixed(3)), cell(item.contribution.toFixed(3)), cell(item.error.toFixed(3)));
  const head = (name, place) => h("th", { scope: "col", class: place && "number" }, name);
  const { without_top, without_random, only_top } = found.fidelity;
  return h(
    "section",
    { class: "panel", "aria-label": "Explanation" },
    h("h2", {}, "Why"),
    h("p", { class: "small" }, `Shapley values, from ${percent(found.baseline)} when nothing is known of an account to ${percent(found.probability)}; the thin lines are standard errors.`),
    bars,
    h("details", {}, h("summary", {}, "As a table"), h("div", { class: "scroll", tabindex: "0" }, h("table", { "data-contributions": "" }, h("thead", {}, h("tr", {}, ["Property", "Value (0–1)", "Contribution", "± error"].map(head))), h("tbody", {}, found.contributions.map(row))))),
    h("h3", {}, "How far this can be trusted"),
    h(
      "dl",
      { "data-fidelity": "" },
      h("dt", {}, "Without the three strongest"),
      h("dd", {}, `the probability changes by ${percent(without_top)} (large is good)`),
      h("dt", {}, "Without three drawn at random"),
      h("dd", {}, `by ${percent(without_random)} on average (the floor)`),
      h("dt", {}, "With the three strongest alone"),
      h("dd", {}, `by ${percent(only_top)} (small is good)`),
    ),
  );
}
