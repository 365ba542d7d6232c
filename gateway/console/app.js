// The console's frame: navigation, the key, and which page an address (#/jobs/ID?…) shows.

import { Problem, get } from "./api.js";
import { h, refresh, replace } from "./dom.js";
import { describe, enter, key, leave, who } from "./session.js";
import { failure, loading } from "./states.js";
import { show, theme, toggle } from "./theme.js";

// Address → module, loaded when it is first gone to. A `:name` takes one part of the address.
const ROUTES = [
  ["", "./pages/home.js"],
  ["try", "./try/home.js"],
  ["try/iqa", "./try/iqa.js"],
  ["try/bots", "./try/bots.js"],
  ["try/pointcloud", "./try/pointcloud.js"],
  ["try/inlining", "./try/inlining.js"],
  ["jobs", "./pages/jobs.js"],
  ["jobs/:id", "./pages/job.js"],
  ["train", "./pages/train.js"],
  ["models", "./pages/models.js"],
  ["models/:name", "./pages/model.js"],
  ["datasets", "./pages/datasets.js"],
  ["datasets/:reference", "./pages/dataset.js"],
  ["audits", "./pages/audits.js"],
  ["audits/:id", "./pages/audit.js"],
];
const NAVIGATION = [["", "Home"], ["try", "Try"], ["jobs", "Jobs"], ["models", "Models"], ["datasets", "Datasets"], ["audits", "Audits"]];

const main = document.getElementById("main");
let leaving = new AbortController();

/** Where an address leads: its module, the values of its `:names`, its query. */
function resolve(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean);
  for (const [pattern, module] of ROUTES) {
    const wanted = pattern.split("/").filter(Boolean);
    if (wanted.length !== parts.length || !wanted.every((part, i) => part.startsWith(":") || part === parts[i])) continue;
    const params = Object.fromEntries(
      wanted.flatMap((part, i) => (part.startsWith(":") ? [[part.slice(1), decodeURIComponent(parts[i])]] : [])),
    );
    return { section: parts[0] ?? "", module, params, query: new URLSearchParams(query) };
  }
  return null;
}

/**
 * Show the page of the present address. A page module has `page(root, context)`, which fills `root`:
 * `context.params` and `context.query` are of the address, `context.signal` aborts when the page is left,
 * `context.title(text)` names it, `context.go(address)` leads elsewhere.
 */
async function navigate() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  drawFrame();
  if (key() === null) return askForKey();
  if (who() === null) {
    replace(main, loading());
    try {
      describe(await get("/v1/keys/self", { signal }));
    } catch (error) {
      if (!signal.aborted && error.status !== 401) replace(main, failure(error, navigate));
      return;
    }
    drawFrame();
  }
  const target = resolve(location.hash);
  const root = h("div", { class: "page" });
  replace(main, root);
  const title = (text) => (document.title = `${text} · Fourfold`);
  title("Console");
  if (target === null) {
    replace(root, failure(new Problem(404, { title: "There is no such page", detail: "The address is not one of the console's." })));
    return;
  }
  try {
    const { page } = await module(target.module);
    if (!signal.aborted) await page(root, { ...target, signal, title, go });
  } catch (error) {
    if (!signal.aborted && error.name !== "AbortError") replace(root, failure(error, again));
  }
}

async function module(path) {
  try {
    return await import(path);
  } catch (error) {
    console.warn(error);
    throw new Problem(0, { title: "This page could not be loaded", detail: "The gateway is not answering, or was replaced by another version." });
  }
}

/** Load the whole page anew, which a browser needs for a module that failed; but never for its own page of an error. */
async function again() {
  try {
    await get("/healthz");
    location.reload();
  } catch (error) {
    replace(main, failure(error, again));
  }
}

function go(address) {
  if (location.hash === address) navigate();
  else location.hash = address;
}

function drawFrame() {
  const section = resolve(location.hash)?.section;
  const link = ([path, name]) => h("a", { href: `#/${path}`, "aria-current": (section === "train" ? "jobs" : section) === path && "page" }, name);
  replace(document.getElementById("nav"), NAVIGATION.map(link));
  const other = theme() === "dark" ? "light" : "dark";
  refresh(
    document.getElementById("tools"),
    h("button", { type: "button", class: "quiet", "data-key": "theme", onclick: () => (toggle(), drawFrame()), title: `Use the ${other} colours` }, other === "dark" ? "Dark" : "Light"),
    who() && h("button", { type: "button", class: "quiet", onclick: forget, title: `Key ${who().name}: ${who().scopes.join(", ")}` }, "Forget key"),
  );
}

function forget() {
  leave();
  navigate();
}

/** The form for the key; `problem` says why the last one was not taken. */
function askForKey(problem = null) {
  document.title = "Key · Fourfold";
  const place = h("div", {}, problem && failure(problem));
  const input = h("input", { id: "key", name: "key", type: "password", required: true, autocomplete: "off", spellcheck: "false", "aria-describedby": "key-help" });
  const form = h(
    "form",
    { class: "panel key" },
    h("h1", {}, "Your API key"),
    h("label", { for: "key" }, "Key"),
    input,
    h("p", { id: "key-help", class: "small" }, "On the machine where Fourfold was started, ", h("code", {}, "fourfold keys show"), " prints it. It stays in this tab until you close it."),
    place,
    h("button", { type: "submit", class: "primary" }, "Enter"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    replace(place, loading("Asking the gateway…"));
    const secret = input.value.trim();
    try {
      enter(secret, await get("/v1/keys/self", { secret }));
      navigate();
    } catch (error) {
      replace(place, failure(error));
      input.select();
    }
  });
  replace(main, form);
  input.focus();
}

document.addEventListener("unauthenticated", (event) => {
  leaving.abort();
  drawFrame();
  askForKey(event.detail);
});
window.addEventListener("hashchange", () => {
  navigate();
  main.focus();
  window.scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which page is shown
  main.focus();
});
show();
navigate();
