// Inlining: C or LLVM IR → what to inline, how much smaller the code gets, and the replay file that makes clang do it.

import { post } from "../api.js";
import { h, replace } from "../dom.js";
import { failure, loading, refused } from "../states.js";
import { advice } from "./advice.js";
import { commandsPanel, curl, literal, python, word } from "./commands.js";
import { dropPlace } from "./drop.js";

const EXAMPLES = [["sensors.c", "A C file of 85 lines"]];
const KINDS = { c: "C source", ir: "LLVM IR, as text", bitcode: "LLVM bitcode" };
const MOST_SHOWN = 2 ** 20; // characters of a file that go into the text field

export async function page(root, { title, signal }) {
  title("Try inlining");
  const commands = commandsPanel();
  const result = h("div", {});
  const note = h("p", { class: "small" });
  const text = h("textarea", { id: "source", rows: 14, spellcheck: "false", class: "mono", oninput: typed });
  const kind = h("select", { id: "kind" }, Object.entries(KINDS).map(([value, name]) => h("option", { value, disabled: value === "bitcode" }, name)));
  const flags = h("input", { id: "flags", placeholder: "-std=c11 -DNDEBUG", spellcheck: "false" });
  const tries = h("input", { id: "tries", type: "number", min: 1, max: 16, value: 1 });
  let name = null; // of the file that was taken
  let given = null; // its content, where it is not in the text field: bitcode, or too long
  let asked = null;

  function typed() {
    given = null;
    if (kind.value === "bitcode") kind.value = "c";
  }

  const taken = async (file) => {
    name = file.name;
    const ending = name.slice(name.lastIndexOf("."));
    kind.value = { ".ll": "ir", ".bc": "bitcode" }[ending] ?? "c";
    given = kind.value === "bitcode" ? await base64(file) : await file.text();
    const shown = kind.value !== "bitcode" && given.length <= MOST_SHOWN;
    text.value = shown ? given : "";
    note.textContent = shown ? "" : `${name} is sent as it is; typing here takes its place.`;
    if (shown) given = null;
    advise();
  };
  replace(
    root,
    h("h1", {}, "Inlining"),
    h("p", {}, "Stock clang at -Oz and each candidate are compiled; the smallest is the answer, so it is never larger than stock. Nothing that is sent is run."),
    h(
      "form",
      { class: "panel", "aria-label": "Input", onsubmit: (event) => (event.preventDefault(), advise()) },
      dropPlace({ id: "file", label: "A file: C source, LLVM IR (.ll) or bitcode (.bc)", accept: ".c,.ll,.bc", examples: EXAMPLES, taken }),
      h("div", { class: "field" }, h("label", { for: "source" }, "Or paste"), text, note),
      h(
        "div",
        { class: "fields" },
        field("kind", "What it is", kind),
        field("flags", "Compiler flags, for C source", flags, "The goal chooses the level: -Oz. A source with headers of its own: the command below sends them along."),
        field("tries", "Tries of the policy", tries, "More find more, and take longer."),
      ),
      h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Advise")),
    ),
    result,
    commands.panel,
  );
  tell();
  for (const input of [kind, flags, tries]) input.addEventListener("change", tell);

  function request() {
    const format = kind.value;
    const own = format === "c" ? { name: fileName(), flags: words() } : {};
    return { format, content: given ?? text.value, best_of: Number(tries.value), ...own };
  }

  async function advise() {
    const mine = (asked = {});
    tell();
    if (!given && !text.value.trim()) {
      replace(result, h("div", { class: "state problem", role: "alert" }, "There is nothing to advise on yet: paste a source, or choose the example."));
      return;
    }
    const wanted = request();
    const ask = (artefact) => post("/v1/inlining/advice", { ...wanted, artefact }, { signal });
    replace(result, loading("Compiling stock and the candidates…"));
    try {
      const found = await ask("replay");
      if (mine === asked) replace(result, advice(found, fileName().replace(/\.[^.]*$/, ""), () => ask("annotated-ir")));
    } catch (error) {
      if (mine === asked && error.name !== "AbortError") replace(result, failure(error, refused(error) ? null : advise));
    }
  }

  function fileName() {
    return name ?? { c: "input.c", ir: "input.ll", bitcode: "input.bc" }[kind.value];
  }

  function words() {
    return flags.value.split(/\s+/).filter(Boolean);
  }

  function tell() {
    commands.show(linesOf(kind.value, fileName(), kind.value === "c" ? words() : [], Number(tries.value)));
  }
}

const field = (id, label, input, help) => h("div", { class: "field" }, h("label", { for: id }, label), input, help && h("p", { class: "small" }, help));

const base64 = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

function linesOf(kind, name, flags, tries) {
  const members = [`format: "${kind}"`, "content: .", kind === "c" && `name: ${JSON.stringify(name)}`, flags.length && `flags: ${JSON.stringify(flags)}`, tries > 1 && `best_of: ${tries}`].filter(Boolean).join(", ");
  const quoted = `'{${members.replaceAll("'", "'\\''")}}'`;
  const before = kind === "bitcode" ? `base64 -w0 ${word(name)} | jq -R ${quoted} | ` : `jq -Rs ${quoted} ${word(name)} | `;
  const options = `${flags.length ? `, flags=${literal(flags)}` : ""}${tries > 1 ? `, best_of=${tries}` : ""}`;
  return {
    curl: curl("/v1/inlining/advice", ["-H 'Content-Type: application/json'", "--data-binary @-"], before),
    python: python(`found = client.advise(${literal(name)}${options})`, 'print(found["text_stock"], "→", found["text_advised"], "by", found["winner"])'),
    fourfold: `fourfold advise ${word(name)}${tries > 1 ? ` --best-of ${tries}` : ""} --out replay.txt${flags.length ? ` -- ${flags.map((flag) => word(flag).replace(/^\.\//, "")).join(" ")}` : ""}`,
  };
}
