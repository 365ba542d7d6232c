// The shell, Python and `fourfold` lines that do what a page did. No key is ever written into them.

import { h, replace } from "../dom.js";

const KEY = '-H "Authorization: Bearer $(fourfold keys show)"';

/** A word for a POSIX shell. */
export function word(text) {
  const named = text.startsWith("-") ? `./${text}` : text;
  return /^[\w@%+=:,./-]+$/.test(named) ? named : `'${named.replaceAll("'", "'\\''")}'`;
}

/** A Python literal of a text, number, list or object of these. */
export function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, item]) => `${literal(name)}: ${literal(item)}`).join(", ")}}`;
  return JSON.stringify(value);
}

/** curl on a path of this gateway: `before` is what is piped into it. */
export function curl(path, parts, before = "") {
  return `${before}curl ${KEY} \\\n     ${[...parts, word(location.origin + path)].join(" \\\n     ")}`;
}

/** Python: the lines inside the client's `with`. */
export const python = (...lines) =>
  ["from fourfold import Client", "", "with Client() as client:", ...lines.map((line) => `    ${line}`)].join("\n");

/** A panel; `show({curl, python, fourfold})` fills it. A value may be null where there is no such line. */
export function commandsPanel() {
  const place = h("div", {});
  const panel = h(
    "section",
    { class: "panel commands", "aria-label": "The same without this page" },
    h("h2", {}, "The same without this page"),
    place,
    h("p", { class: "small" }, "On another machine, set ", h("code", {}, `FOURFOLD_URL=${location.origin}`), " and ", h("code", {}, "FOURFOLD_KEY"), "."),
  );
  const block = ([name, text]) => text && h("div", { class: "command" }, h("div", { class: "head" }, h("h3", {}, name), copyButton(name, text)), h("pre", { tabindex: "0", "data-command": name }, text));
  const show = ({ curl, python, fourfold }) => replace(place, [["curl", curl], ["Python", python], ["fourfold", fourfold]].map(block));
  return { panel, show };
}

function copyButton(name, text) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy the ${name} line` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy"; // no clipboard outside of a secure context
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}
