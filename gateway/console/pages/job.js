// One job, live: how far it is, its curves, its log, what it left; cancelling it.

import { get, post, request, save } from "../api.js";
import { Curves } from "../curves.js";
import { ask } from "../dialogs.js";
import { h, refresh, replace } from "../dom.js";
import { follow } from "../events.js";
import { ago, bytes, number, seconds, when, words } from "../format.js";
import { ended, lasted, progressBar, stateTag } from "../jobs.js";
import { tail } from "../log.js";
import { failure, repeat, shown } from "../states.js";

const FILES_SECONDS = 5;

export async function page(root, context) {
  const { params, signal, title } = context;
  title("Job");
  const path = `/v1/jobs/${encodeURIComponent(params.id)}`;
  await shown(root, signal, () => get(path, { signal }), (job) => draw(job, path, context));
}

function draw(first, path, { signal, title, go }) {
  title(`${first.kind} ${first.domain}`);
  let job = first;
  let left = null; // seconds that the worker thinks it needs
  const head = h("div", {});
  const facts = h("section", { class: "panel" });
  const outcome = h("div", {});
  const connection = h("div", { role: "status" });
  const files = h("div", {});
  const log = h("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
  const curves = new Curves();

  const redraw = () => {
    refresh(head, drawHead(job, path, (changed) => show(changed)));
    replace(facts, drawFacts(job, left));
    replace(outcome, drawOutcome(job, go));
  };
  const show = (changed) => {
    job = { ...job, ...changed };
    redraw();
  };
  redraw();
  watch(path, job, signal, {
    connection: (live) => replace(connection, live ? null : h("p", { class: "notice" }, "The connection is lost; it is tried again. What is shown is the last that was heard.")),
    state: (changed) => {
      if (changed.attempt !== job.attempt) left = null;
      show(changed);
    },
    progress: ({ seconds_left: remaining, ...point }) => {
      left = remaining;
      curves.add(point);
      show({ step: point.step, total: point.total, metrics: point.metrics });
    },
    points: (points) => curves.addAll(points),
    problem: (error) => replace(connection, failure(error)),
  });
  repeat(signal, 1, async () => ended(job) || redraw()); // the time that it took
  tail(log, `${path}/logs`, signal, () => ended(job));
  repeat(signal, FILES_SECONDS, async () => refresh(files, drawFiles((await get(`${path}/files`, { signal })).files, path)), true);
  return [
    head,
    connection,
    outcome,
    facts,
    h("section", { class: "panel" }, h("h2", {}, "Curves"), curves.element),
    h("div", { class: "columns" },
      h("section", { class: "panel" }, h("h2", {}, "Log"), log),
      h("section", { class: "panel" }, h("h2", {}, "Files"), files, configuration(job))),
  ];
}

/**
 * Follow a job: what was before from its curves, then its events. The place in the stream is kept for this tab, so that
 * a page that is loaded again goes on where it was.
 */
async function watch(path, job, signal, tell) {
  const place = `fourfold.after.${job.id}`;
  try {
    tell.points((await get(`${path}/points`, { signal })).points);
    for await (const { event, id, data } of follow(`${path}/events`, { signal, after: sessionStorage.getItem(place), onconnection: tell.connection })) {
      if (id) sessionStorage.setItem(place, id);
      if (event === "progress") tell.progress(data);
      if (event === "state") {
        tell.state(data);
        if (ended(data)) return;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") tell.problem(error);
  }
}

function drawHead(job, path, show) {
  const cancel = async () => {
    const changed = await ask({
      title: `Cancel ${job.kind} ${job.domain}?`,
      body: h("p", {}, job.state === "running" ? "It stops at its next step. What it has trained so far is not published." : "It has not begun, and ends at once."),
      button: "Cancel the job",
      danger: true,
      act: () => post(`${path}/cancel`),
    });
    if (changed) show(changed);
  };
  return h(
    "div",
    { class: "head" },
    h("h1", {}, `${words(job.kind)}: ${job.domain} `, stateTag(job)),
    !ended(job) && job.cancel_requested_at === null && h("button", { type: "button", "data-key": "cancel", onclick: cancel }, "Cancel"),
  );
}

function drawFacts(job, left) {
  const fact = (name, ...value) => [h("dt", {}, name), h("dd", {}, value)];
  const lost = job.lost_leases ? `; ${job.lost_leases} lost with their worker, ${job.max_attempts} would end it` : "";
  return [
    progressBar(job),
    h(
      "dl",
      {},
      fact("Id", h("code", {}, job.id)),
      job.dataset && fact("Data set", h("a", { href: `#/datasets/${job.dataset}` }, h("code", {}, job.dataset.slice(0, 12)))),
      fact("Made", `${when(job.created_at)} (${ago(job.created_at)}) by ${job.created_by}`),
      fact("Took", lasted(job), !ended(job) && left !== null ? `, about ${seconds(left)} left` : ""),
      fact("Attempt", `${job.attempt || "none yet"}${lost}`),
      job.worker && fact("Worker", job.worker),
      Object.entries(job.metrics).map(([name, value]) => fact(words(name), number(value))),
    ),
  ];
}

function drawOutcome(job) {
  if (job.problem) {
    return h("div", { class: "state problem", role: "alert" }, h("strong", {}, job.problem.title ?? "The job failed"), h("p", {}, job.problem.detail ?? ""));
  }
  if (!ended(job) || !job.result) return null;
  const { model, version, ...rest } = job.result;
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Result"),
    model && version && h("p", {}, `It made `, h("a", { href: `#/models/${model}` }, `${model}/${version}`), ". It is served once it is promoted."),
    model && version && h("a", { class: "button primary", href: `#/models/${model}?version=${version}` }, "Look at it and promote"),
    Object.keys(rest).length > 0 && h("pre", {}, JSON.stringify(rest, null, 1)),
  );
}

function drawFiles(files, path) {
  const download = async (name) => save(await request("GET", `${path}/files/${encodeURIComponent(name)}`, { as: "blob" }), name);
  if (files.length === 0) return h("p", { class: "muted" }, "None yet.");
  return h(
    "ul",
    {},
    files.map(({ kind, name, attempt, bytes: size }) =>
      h("li", {}, kind === "result" ? h("button", { type: "button", "data-key": name, onclick: () => download(name) }, name) : h("span", { class: "mono" }, name), ` ${kind}${attempt === null ? "" : ` of attempt ${attempt}`}, ${bytes(size)}`),
    ),
  );
}

const configuration = (job) =>
  h("details", {}, h("summary", {}, "Configuration"), h("pre", {}, JSON.stringify(job.config, null, 1)));
