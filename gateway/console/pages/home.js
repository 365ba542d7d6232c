// Home: what is served now, how it does, and what runs.

import { Problem, get, request } from "../api.js";
import { h, refresh, replace } from "../dom.js";
import { ago, number } from "../format.js";
import { jobTable } from "../jobs.js";
import { may } from "../session.js";
import { empty, failure, repeat, shown } from "../states.js";

const LOOK_SECONDS = 2;

export async function page(root, { signal, title }) {
  title("Home");
  const cards = h("div", { class: "cards" });
  const jobs = h("div", {});
  const lost = h("div", {});
  replace(
    root,
    h("h1", {}, "Home"),
    lost,
    h("h2", {}, "Served now"),
    cards,
    h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", {}, "Running and waiting"), h("a", { href: "#/jobs" }, "All jobs")), jobs),
  );
  await shown(cards, signal, () => served(signal), drawServed);
  if (may("train")) await shown(jobs, signal, () => running(signal), drawRunning);
  else replace(jobs, empty("This key may not see jobs", "It lacks the scope train."));
  repeat(signal, LOOK_SECONDS, async () => {
    try {
      refresh(cards, drawServed(await served(signal)));
      if (may("train")) refresh(jobs, drawRunning(await running(signal)));
      replace(lost);
    } catch (error) {
      if (error.name !== "AbortError") replace(lost, failure(error));
    }
  });
}

/** One row a model: its table of aliases, whether its service is ready, what it has answered. */
async function served(signal) {
  const [{ models }, ready, { model_stats: stats }] = await Promise.all([
    get("/v1/models", { signal }),
    get("/readyz", { signal }).catch((error) => {
      if (error instanceof Problem && error.document.services) return error.document; // 503 names who is not
      throw error;
    }),
    get("/v2/models/stats", { signal }),
  ]);
  return models.map((model) => ({ ...model, ready: ready.services[model.name], stats: stats.filter((row) => row.name === model.name) }));
}

function drawServed(models) {
  if (models.length === 0) return empty("No model yet", "The first start of a service publishes its own.");
  return models.map(card);
}

function card({ name, aliases, versions, ready, stats }) {
  const champion = aliases.aliases.champion;
  const canary = aliases.aliases.canary;
  return h(
    "section",
    { class: "panel", "aria-label": name },
    h("div", { class: "head" }, h("h3", {}, name), h("span", { class: `tag ${ready ? "good" : "bad"}` }, ready ? "ready" : "not ready")),
    h(
      "p",
      {},
      champion ? `Version ${champion.version}` : "No champion",
      canary ? `, and version ${canary.version} for ${number(canary.weight * 100)} % of the requests` : "",
    ),
    stats.map((row) => counts(row, stats.length > 1)),
    h("div", { class: "actions" }, h("a", { href: `#/try/${name}` }, "Try"), h("a", { href: `#/models/${name}` }, versions.length === 1 ? "1 version" : `${versions.length} versions`)),
  );
}

// Mean times since the service started, of the protocol's statistics: nanoseconds and counts.
function counts({ version, inference_stats: found, last_inference: last }, several) {
  const mean = ({ count, ns }) => (count ? `${number(ns / count / 1e6)} ms` : "–");
  return h(
    "dl",
    {},
    several && [h("dt", {}, "Version"), h("dd", {}, version)],
    h("dt", {}, "Answered"), h("dd", {}, number(found.success.count), found.fail.count ? `, ${number(found.fail.count)} failed` : ""),
    h("dt", {}, "Mean time"), h("dd", {}, mean(found.success)),
    h("dt", {}, "Of it waiting"), h("dd", {}, mean(found.queue)),
    h("dt", {}, "Last"), h("dd", {}, last ? ago(last / 1000) : "never"),
  );
}

async function running(signal) {
  const pages = await Promise.all(["running", "queued"].map((state) => request("GET", `/v1/jobs?state=${state}&limit=20`, { signal })));
  return pages.flatMap((page) => page.jobs);
}

function drawRunning(jobs) {
  if (jobs.length === 0) return empty("Nothing runs", "A training of your own data begins with a data set.", h("a", { class: "button", href: "#/train" }, "Train a model"));
  return jobTable(jobs);
}
