// Image quality: a photo's score with its map, and two photos side by side.

import { request } from "../api.js";
import { h, replace } from "../dom.js";
import { failure, loading, refused } from "../states.js";
import { commandsPanel, curl, literal, python, word } from "./commands.js";
import { dropPlace } from "./drop.js";
import { picture, quality } from "./quality.js";

const EXAMPLES = [
  ["balls.jpg", "A rendered picture"],
  ["balls-squeezed.jpg", "The same, squeezed by JPEG"],
];

export async function page(root, { title, signal }) {
  title("Try image quality");
  const commands = commandsPanel();
  const verdict = h("div", { role: "status" });
  const slots = ["first", "second"].map((name) => new Slot(name, signal, changed));
  const second = h("div", { hidden: true }, slots[1].element);
  const more = h("button", { type: "button", hidden: true, onclick: () => ((second.hidden = false), (more.hidden = true)) }, "Compare with a second photo");
  replace(
    root,
    h("h1", {}, "Image quality"),
    h("p", {}, "A score from 0 (worst) to 100 (best), learnt from generated distortions: a full-reference proxy, nobody's opinion."),
    verdict,
    h("div", { class: "columns" }, slots[0].element, second),
    h("p", {}, more),
    commands.panel,
  );
  changed();

  function changed() {
    const [one, other] = slots;
    if (one.answer && second.hidden) more.hidden = false;
    replace(verdict, one.answer && other.answer ? compared(one, other) : null);
    const names = slots.filter((slot) => slot.file).map((slot) => slot.file.name);
    commands.show(linesOf(names.length ? names : ["photo.jpg"]));
  }
}

/** One photo: where it is dropped, and below it what the service says of it. */
class Slot {
  constructor(name, signal, changed) {
    this.file = null;
    this.answer = null;
    this.signal = signal;
    this.changed = changed;
    this.result = h("div", {});
    const drop = dropPlace({ id: `photo-${name}`, label: `The ${name} photo`, accept: "image/*", examples: EXAMPLES, taken: (file) => this.score(file) });
    this.element = h("section", { class: "panel", "aria-label": `The ${name} photo`, "data-slot": name }, drop, this.result);
    signal.addEventListener("abort", () => this.shown && URL.revokeObjectURL(this.shown));
  }

  async score(file) {
    const asked = (this.asked = {}); // a photo dropped meanwhile takes over
    this.file = file;
    this.answer = null;
    replace(this.result, loading("Scoring…"));
    this.changed();
    let drawn;
    try {
      const options = { body: file, headers: { "Content-Type": "application/octet-stream" }, signal: this.signal };
      const answer = await request("POST", "/v1/iqa/score?map=array", options);
      if (this.asked !== asked) return;
      if (this.shown) URL.revokeObjectURL(this.shown);
      this.shown = URL.createObjectURL(file);
      drawn = [picture(this.shown, file.name, answer), quality(answer)];
      this.answer = answer;
    } catch (error) {
      if (error.name === "AbortError" || this.asked !== asked) return;
      drawn = failure(error, refused(error) ? null : () => this.score(file));
    }
    replace(this.result, drawn);
    this.changed();
  }
}

function compared(one, other) {
  const apart = one.answer.score - other.answer.score;
  const [better, worse] = apart >= 0 ? [one, other] : [other, one];
  const points = Math.abs(apart).toFixed(1);
  if (points === "0.0") return h("p", { class: "notice", "data-verdict": "" }, "Both photos score the same.");
  return h("p", { class: "notice", "data-verdict": "" }, h("strong", {}, `The ${better === one ? "first" : "second"} photo is better by ${points} points: `), `${better.file.name} ${better.answer.score.toFixed(1)}, ${worse.file.name} ${worse.answer.score.toFixed(1)}.`);
}

function linesOf(names) {
  if (names.length === 1) {
    return {
      curl: curl("/v1/iqa/score?map=array", [`--data-binary ${word(`@${names[0]}`)}`, "-H 'Content-Type: application/octet-stream'"]),
      python: python(`answer = client.score(${literal(names[0])}, map="array")`, 'print(answer["score"], answer["distortion"]["kind"])'),
      fourfold: `fourfold score ${word(names[0])} --map map.png`,
    };
  }
  return {
    curl: curl("/v1/iqa/score?map=array", names.map((name) => `-F ${word(`images=@${name}`)}`)),
    python: python(`for row in client.score_many(${literal(names)}):`, '    print(row["name"], row["result"]["score"])'),
    fourfold: `fourfold score ${names.map(word).join(" ")}`,
  };
}
