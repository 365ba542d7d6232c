// Bots: a pasted account, a list or a table → probability, evidence, explanation and neighbourhood.

import { post, save } from "../api.js";
import { h, replace } from "../dom.js";
import { failure, loading, refused } from "../states.js";
import { identity, nameOf, readAccounts } from "./accounts.js";
import { commandsPanel, curl, python } from "./commands.js";
import { dropPlace } from "./drop.js";
import { explanation, percent, score, verdict } from "./evidence.js";
import { neighbourhood } from "./neighbourhood.js";

const EXAMPLES = [
  ["account.json", "An account (Mastodon, invented)"],
  ["accounts.csv", "A table (invented)"],
  ["neighbourhood.json", "An account with its neighbourhood (X, invented)"],
];
const WAIT = 150; // milliseconds after the last move of a slider

export async function page(root, { title, signal }) {
  title("Try bots");
  const commands = commandsPanel();
  const text = h("textarea", { id: "account", rows: 10, spellcheck: "false", class: "mono", placeholder: '{"screen_name": "…", "followers_count": 3, …}' });
  const scores = h("div", {});
  const details = h("div", {});
  const kept = h("span", {});
  const prior = slider("prior", "Share of bots that you expect", 1, 99, 47);
  const least = slider("least", "Withhold a label below a confidence of", 50, 99, 50);
  let read = null; // what was read of the text: {asked, kind}
  let chosen = 0; // the row whose details are shown
  let given = false; // whether the person set a prior
  let calls = new AbortController();
  let explaining = new AbortController();

  const taken = async (file) => {
    text.value = await file.text();
    start();
  };
  replace(
    root,
    h("h1", {}, "Bots"),
    h("p", {}, "How probably an account is a bot, calibrated, with what speaks for it and against. ", h("strong", {}, "Do not act on an account by this alone.")),
    h(
      "section",
      { class: "panel", "aria-label": "Input" },
      dropPlace({ id: "file", label: "A file", accept: ".json,.csv,.txt,application/json,text/csv", examples: EXAMPLES, taken }),
      h("div", { class: "field" }, h("label", { for: "account" }, "Or paste: JSON of X (v1.1, v2), Mastodon, Bluesky or MGTAB, one account, a list, a whole request, or a CSV table"), text),
      h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: start }, "Score"), kept),
      h("div", { class: "fields" }, prior.element, least.element),
    ),
    scores,
    details,
    commands.panel,
  );
  tell();
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => read && ask(false), WAIT);
    tell();
  };
  prior.input.addEventListener("input", () => ((given = true), later()));
  least.input.addEventListener("input", later);
  signal.addEventListener("abort", () => (clearTimeout(timer), calls.abort(), explaining.abort()));

  function start() {
    chosen = 0;
    explaining.abort();
    replace(details);
    try {
      read = readAccounts(text.value);
    } catch (error) {
      read = null;
      replace(scores, h("div", { class: "state problem", role: "alert" }, error.message));
      return;
    }
    if (read.asked.prior) prior.set(100 * read.asked.prior);
    if (read.asked.min_confidence) least.set(100 * read.asked.min_confidence);
    given = Boolean(read.asked.prior);
    tell();
    ask(true);
  }

  function request() {
    return { ...read.asked, ...(given && { prior: prior.value() }), min_confidence: least.value() };
  }

  /** Score; `anew` also explains, which does not depend on the sliders. */
  async function ask(anew) {
    calls.abort();
    calls = new AbortController();
    const mine = calls.signal;
    if (anew) replace(scores, loading("Scoring…"));
    try {
      const answer = await post("/v1/bots/score", request(), { signal: mine });
      if (mine.aborted) return;
      if (!given) prior.set(100 * (answer.prior ?? 0.5));
      show(answer, anew);
    } catch (error) {
      if (!mine.aborted) replace(scores, failure(error, refused(error) ? null : () => ask(anew)));
    }
  }

  function show(answer, anew) {
    const many = answer.results.length > 1;
    replace(scores, many && list(answer), place);
    const choose = () => {
      const { result, problem } = answer.results[chosen];
      replace(place, problem ? told(problem) : score(result, answer.prior));
      if (problem) {
        explaining.abort();
        replace(details);
      }
    };
    choose();
    if (anew && !answer.results[chosen].problem) explain(answer.results[chosen].result);

    function list() {
      const row = ({ row, result, problem }) => {
        const pick = () => {
          chosen = row;
          show(answer, true);
        };
        const name = h("button", { type: "button", class: "quiet", "aria-pressed": String(row === chosen), onclick: pick }, nameOf(read.asked.accounts[row] ?? {}, row));
        return h("tr", {}, h("td", {}, name), problem ? h("td", { colspan: 3 }, problem.detail) : [h("td", { class: "number" }, percent(result.adjusted_probability)), h("td", {}, verdict(result.label)), h("td", {}, result.out_of_distribution && "unusual")]);
      };
      const heads = ["Account", "Probability", "Label", "Distribution"].map((name) => h("th", { scope: "col" }, name));
      return h("section", { class: "panel", "aria-label": "Accounts" }, h("div", { class: "scroll", tabindex: "0" }, h("table", { "data-accounts": "" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, answer.results.map(row)))));
    }
  }

  const place = h("div", {});

  async function explain(result) {
    const row = chosen;
    explaining.abort();
    explaining = new AbortController();
    const mine = explaining.signal;
    replace(details, loading("Explaining…"));
    const { asked } = read;
    const draw = (found) => replace(details, h("div", { class: "columns" }, found, asked.neighbourhood && neighbourhood(asked, row, result.evidence, edges)));
    let edges = [];
    try {
      const answer = await post("/v1/bots/explain", alone(asked, row), { signal: mine });
      if (mine.aborted) return;
      edges = answer.results[0].result.edges;
      draw(explanation(answer.results[0].result));
    } catch (error) {
      if (!mine.aborted) draw(failure(error, refused(error) ? null : () => explain(result)));
    }
  }

  function tell() {
    const { accounts: _, neighbourhood: __, ...own } = read?.asked ?? {};
    const options = { ...(given && prior.value() !== own.prior && { prior: prior.value() }), ...(least.value() !== (own.min_confidence ?? 0.5) && { min_confidence: least.value() }) };
    commands.show(linesOf(read?.kind ?? "account", options));
    const keep = () => save(new Blob([JSON.stringify(read.asked.accounts, null, 1)], { type: "application/json" }), "accounts.json");
    replace(kept, read?.kind === "table" && h("button", { type: "button", onclick: keep }, "Save the table as accounts.json"));
  }
}

/** A request about one account, with the others around it where edges join them. */
function alone(asked, row) {
  if (asked.accounts.length === 1) return asked;
  const around = asked.neighbourhood;
  const others = asked.accounts.filter((account, place) => place !== row && identity(account) !== null);
  return { ...asked, accounts: [asked.accounts[row]], ...(around && { neighbourhood: { ...around, accounts: [...others, ...(around.accounts ?? [])] } }) };
}

const told = (problem) => h("div", { class: "state problem", role: "alert" }, h("strong", {}, problem.title), h("p", {}, problem.detail));

function slider(id, label, low, high, start) {
  const output = h("output", { for: id });
  const input = h("input", { id, type: "range", min: low, max: high, value: start, oninput: () => (output.textContent = ` ${input.value} %`) });
  output.textContent = ` ${start} %`;
  const set = (value) => {
    input.value = Math.round(value);
    output.textContent = ` ${input.value} %`;
  };
  return { input, set, value: () => Number(input.value) / 100, element: h("div", { class: "field" }, h("label", { for: id }, label, output), input) };
}

/** A table is written as the JSON that the page made of it. */
function linesOf(kind, options) {
  const file = { account: "account.json", request: "request.json" }[kind] ?? "accounts.json";
  const set = Object.entries(options);
  const members = set.map(([name, value]) => `, ${name}: ${value}`).join("");
  const filter = kind === "request" ? (set.length ? `. + {${members.slice(2)}}` : null) : `{accounts: ${kind === "account" ? "[.]" : "."}${members}}`;
  const before = filter ? `jq '${filter}' ${file} | ` : "";
  const keywords = set.map(([name, value]) => `, ${name}=${value}`).join("");
  const what = { account: "[given]", request: `given.pop("accounts"), **given` }[kind] ?? "given";
  // The command has an option for the prior alone; a whole request may say more.
  const whole = options.min_confidence && filter;
  const asked = whole ? "asked.json" : file;
  const flag = options.prior && !whole ? ` --prior ${options.prior}` : "";
  return {
    curl: curl("/v1/bots/score", ["-H 'Content-Type: application/json'", `--data-binary @${before ? "-" : file}`], before),
    python: `import json\nfrom pathlib import Path\n\n${python(`given = json.loads(Path("${file}").read_text())`, `print(client.score_accounts(${what}${keywords}))`)}`,
    fourfold: `${whole ? `jq '${filter}' ${file} > asked.json\n` : ""}fourfold bots score ${asked}${flag}\nfourfold bots explain ${asked}`,
  };
}
