// What several pages show of a job: its state, its progress, its line in a table.

import { h } from "./dom.js";
import { ago, number, seconds } from "./format.js";

const TONES = { succeeded: "good", failed: "bad", cancelled: "warn", running: "", queued: "" };
export const STATES = Object.keys(TONES);
export const ended = (job) => job.finished_at !== null;

export function stateTag(job) {
  const text = job.cancel_requested_at !== null && !ended(job) ? `${job.state}, to be cancelled` : job.state;
  return h("span", { class: `tag ${TONES[job.state]}` }, text);
}

/** A bar and what it means in words; a job that has not said how far it goes has an open bar. */
export function progressBar(job) {
  if (job.state === "queued") return h("span", { class: "small" }, "waits for a worker");
  const known = job.total > 0;
  const label = known ? `step ${job.step} of ${job.total}` : "started";
  if (ended(job)) return h("span", { class: "small" }, known ? label : "");
  return h("div", {}, h("progress", { "aria-label": `Progress of ${job.id}`, ...(known ? { max: String(job.total), value: job.step } : {}) }), h("span", { class: "small" }, label));
}

export const lasted = (job) => (job.started_at === null ? "–" : seconds((job.finished_at ?? Date.now() / 1000) - job.started_at));

export function jobTable(jobs) {
  return h(
    "div",
    { class: "scroll", tabindex: "0" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ["Job", "State", "Progress", "Latest figures", "Took", "Made"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, jobs.map(row)),
    ),
  );
}

function row(job) {
  const figures = Object.entries(job.metrics).slice(0, 3).map(([name, value]) => `${name} ${number(value)}`);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: `#/jobs/${job.id}` }, `${job.kind} ${job.domain}`), h("div", { class: "small mono" }, job.id.slice(0, 12))),
    h("td", {}, stateTag(job)),
    h("td", {}, progressBar(job)),
    h("td", { class: "small" }, figures.join(" · ")),
    h("td", {}, lasted(job)),
    h("td", { class: "small" }, ago(job.created_at)),
  );
}
