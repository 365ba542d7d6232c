// Where a file is dropped or chosen, and the examples beside it.

import { h } from "../dom.js";
import { bytes } from "../format.js";
import { dropZone } from "../picked.js";
import { failure, loading } from "../states.js";

/**
 * A place for a file. `taken(file)` is called with what was dropped, chosen or clicked; `examples` are
 * `[name, text]` of the console's own files, fetched when they are clicked.
 */
export function dropPlace({ id, label, accept, examples = [], taken: take }) {
  const state = h("div", { role: "status" });
  const taken = (file) => {
    state.replaceChildren(h("span", { class: "small" }, `${file.name}, ${bytes(file.size)}`));
    take(file);
  };
  const input = h("input", { id, type: "file", accept, onchange: () => input.files.length && taken(input.files[0]) });
  const fetched = ([name, text]) => h("button", { type: "button", "data-example": name, onclick: () => fetchExample(name, state, taken) }, text);
  const place = h(
    "div",
    { class: "drop" },
    h("label", { for: id }, label),
    input,
    examples.length > 0 && h("div", { class: "actions" }, h("span", { class: "muted" }, "or an example:"), examples.map(fetched)),
    state,
  );
  dropZone(place, ({ files }) => files.length && taken(files[0]));
  return place;
}

async function fetchExample(name, state, taken) {
  state.replaceChildren(loading("Fetching the example…"));
  try {
    const answer = await fetch(new URL(`../examples/${name}`, import.meta.url));
    if (!answer.ok) throw new Error(`The example ${name} is not there (${answer.status}).`);
    const file = new File([await answer.blob()], name);
    taken(file);
  } catch (error) {
    state.replaceChildren(failure(error));
  }
}
