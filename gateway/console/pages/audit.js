// One audit: its job while it runs, then its report, drawn from the report's JSON.

import { get, request, save } from "../api.js";
import { h, refresh, replace } from "../dom.js";
import { number, seconds, when } from "../format.js";
import { ended, progressBar, stateTag } from "../jobs.js";
import { drawFigure } from "../report_figures.js";
import { repeat, shown } from "../states.js";
import { verdictTag } from "../verdicts.js";

const LOOK_SECONDS = 1;

export async function page(root, context) {
  const { params, signal, title } = context;
  title("Audit");
  const path = `/v1/audits/${encodeURIComponent(params.id)}`;
  const job = await get(`/v1/jobs/${encodeURIComponent(params.id)}`, { signal });
  const report = () => shown(root, signal, () => get(path, { signal }), (found) => draw(found, path, context));
  if (ended(job)) return report();
  await wait(root, job, signal);
  if (!signal.aborted) await report();
}

/** Show how far the job is, until it has ended. */
async function wait(root, first, signal) {
  const place = h("div", {});
  replace(root, h("h1", {}, `Audit of ${first.domain}/${first.config.version}`), h("section", { class: "panel", role: "status" }, place));
  const over = new AbortController();
  signal.addEventListener("abort", () => over.abort());
  const show = (job) => refresh(place, stateTag(job), progressBar(job), h("p", {}, h("a", { href: `#/jobs/${job.id}` }, "Its job"), ", with the log, where it can be cancelled."));
  show(first);
  await repeat(over.signal, LOOK_SECONDS, async () => {
    const job = await get(`/v1/jobs/${first.id}`, { signal });
    show(job);
    if (ended(job)) over.abort();
  });
}

function draw(report, path, { title }) {
  const name = `${report.model}/${report.version}`;
  title(`Audit of ${name}`);
  const fact = (label, ...value) => [h("dt", {}, label), h("dd", {}, value)];
  const download = (where, file) => async () => save(await request("GET", where, { as: "blob" }), `audit-${report.model}-${report.version}.${file}`);
  const { dataset } = report;
  return [
    h("div", { class: "head" }, h("h1", {}, `Audit of ${name} `, verdictTag(report.verdict)), h("div", { class: "tools" },
      h("a", { class: "button", href: `#/models/${report.model}?version=${report.version}` }, "The version"),
      h("button", { type: "button", onclick: download(`${path}/report.html`, "html") }, "Download as a page"),
      h("button", { type: "button", onclick: download(path, "json") }, "As JSON"))),
    (report.notes ?? []).map((note) => h("p", { class: "notice" }, note)),
    h("section", { class: "panel" }, h("dl", {},
      fact("Checks", h("ul", { class: "plain" }, report.checks.map((check) => h("li", {}, `${check.name} `, verdictTag(check.verdict), ` ${check.summary}`)))),
      report.baseline && fact("Beside", `version ${report.baseline}`),
      dataset && fact("On", dataset.digest ? h("a", { href: `#/datasets/${dataset.digest}` }, dataset.name ?? dataset.digest.slice(0, 12)) : dataset.name ?? "–", ` ${dataset.split}, ${number(dataset.n)} examples`),
      fact("Made", `${when(report.created_at)}, in ${seconds(report.seconds)}, budget ${report.budget}, seed ${report.seed}`),
      fact("Again", h("code", {}, report.command)))),
    report.checks.map(drawCheck),
  ];
}

function drawCheck(check) {
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, check.name, " ", verdictTag(check.verdict)),
    h("p", {}, check.summary),
    check.advice && h("p", {}, h("strong", {}, "What to do: "), check.advice),
    check.evidence.length > 0 && evidence(check.evidence),
    h("div", { class: "columns" }, check.figures.map(drawFigure)),
    check.notes.length > 0 && h("details", {}, h("summary", {}, "Notes"), h("ul", {}, check.notes.map((note) => h("li", {}, note)))),
    h("p", { class: "small" }, `Took ${seconds(check.seconds)}.`),
  );
}

function evidence(rows) {
  const names = ["What", "Value", "95 % interval", "Over", "Threshold", "Budget, seeds"];
  const row = (one) =>
    h("tr", {},
      h("th", { scope: "row" }, one.name),
      h("td", {}, `${number(one.value)} ${one.unit ?? ""}`),
      h("td", {}, one.low === null && one.high === null ? "–" : `${number(one.low)} to ${number(one.high)}`),
      h("td", {}, number(one.n)),
      h("td", {}, one.threshold === null ? "–" : [number(one.threshold), one.threshold_source && h("div", { class: "small" }, one.threshold_source)]),
      h("td", { class: "small" }, [one.budget, one.seeds.length ? `seed ${one.seeds.join(", ")}` : ""].filter(Boolean).join("; ")));
  return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows.map(row))));
}
