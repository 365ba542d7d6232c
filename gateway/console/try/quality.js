// What the service says of a photo: score, levels, distortion, and the quality map laid over the picture.

import { h } from "../dom.js";
import { number } from "../format.js";
import { colour, draw } from "../plot.js";

// Bad to good, growing in lightness, so that it reads without colour vision too; the same as in `map=overlay`.
const SCALE = [[20, 20, 110], [30, 90, 160], [40, 150, 140], [150, 200, 70], [250, 235, 60]];

/** The colour of a score, [red, green, blue]. */
export function shade(score) {
  const place = Math.min(1, Math.max(0, score / 100)) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((value, channel) => Math.round(value + (place - low) * (SCALE[low + 1][channel] - value)));
}

/** The picture at `source` (a blob's address) under its map, with a slider between them. */
export function picture(source, name, answer) {
  const rows = answer.map.values;
  const canvas = h("canvas", { width: rows[0].length, height: rows.length, class: "over", role: "img", "aria-label": `Quality map: ${summary(rows)}` });
  paint(canvas, rows);
  canvas.style.opacity = 0.4;
  const readout = h("p", { class: "small", "data-readout": "" }, summary(rows));
  canvas.addEventListener("pointermove", (event) => {
    const at = (part, whole, cells) => Math.min(cells - 1, Math.max(0, Math.floor((part / whole) * cells)));
    const row = at(event.offsetY, canvas.clientHeight, rows.length);
    const column = at(event.offsetX, canvas.clientWidth, rows[0].length);
    readout.textContent = `Here: ${rows[row][column].toFixed(1)}`;
  });
  canvas.addEventListener("pointerleave", () => (readout.textContent = summary(rows)));
  const unseen = h("p", { class: "small" }, "Your browser cannot show this kind of picture; the map is of it all the same.");
  const image = h("img", { src: source, alt: name, width: answer.scored.width, height: answer.scored.height, onerror: () => image.replaceWith(unseen) });
  const slider = h("input", { type: "range", min: 0, max: 100, value: 40, "aria-label": "Opacity of the quality map", oninput: () => (canvas.style.opacity = slider.value / 100) });
  const key = h("canvas", { width: 101, height: 1, class: "key-scale", "aria-hidden": "true" });
  paint(key, [Array.from({ length: 101 }, (_, score) => score)]);
  return h(
    "figure",
    {},
    h("div", { class: "stack" }, image, canvas),
    h("div", { class: "slider" }, h("span", {}, "Picture"), slider, h("span", {}, "Map")),
    h("div", { class: "slider small" }, h("span", {}, "0, bad"), key, h("span", {}, "100, good")),
    h("figcaption", {}, readout),
  );
}

function paint(canvas, rows) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(rows[0].length, rows.length);
  rows.flat().forEach((score, place) => pixels.data.set([...shade(score), 255], place * 4));
  context.putImageData(pixels, 0, 0);
}

function summary(rows) {
  const all = rows.flat();
  const least = Math.min(...all);
  const place = all.indexOf(least);
  const third = (part, whole, names) => names[Math.min(2, Math.floor((3 * (part + 0.5)) / whole))];
  const down = third(Math.floor(place / rows[0].length), rows.length, ["top", "middle", "bottom"]);
  const across = third(place % rows[0].length, rows[0].length, ["left", "centre", "right"]);
  return `From ${least.toFixed(1)} (worst: ${down} ${across}) to ${Math.max(...all).toFixed(1)}.`;
}

/** Score, distortion, confidence and the levels' distribution. */
export function quality(answer) {
  const bars = h("div", {});
  const levels = answer.levels;
  const trace = () => ({ type: "bar", x: levels.map((level) => level.value), y: levels.map((level) => level.probability), marker: { color: colour("accent") }, hovertemplate: "level %{x:.0f}: %{y:.1%}<extra></extra>" });
  const likely = levels.reduce((best, level) => (level.probability > best.probability ? level : best));
  const label = `Distribution over quality levels; the most probable is ${likely.value.toFixed(0)} with ${(likely.probability * 100).toFixed(0)} percent.`;
  const axes = { xaxis: { title: { text: "level" }, range: [-6, 106] }, yaxis: { tickformat: ".0%" } };
  draw(bars, () => [trace()], axes, { label, height: 200 }).catch((error) => (bars.textContent = error.message));
  const kinds = Object.entries(answer.distortion.probabilities).sort(([, a], [, b]) => b - a).filter(([, share], place) => place === 0 || share >= 0.05).slice(0, 4);
  const size = ({ width, height }) => `${width} × ${height}`;
  return h(
    "div",
    {},
    h("p", { class: "headline" }, h("strong", { "data-score": "" }, answer.score.toFixed(1)), " of 100"),
    h(
      "dl",
      {},
      h("dt", {}, "Distortion"),
      h("dd", { "data-kind": "" }, kinds.map(([kind, share], place) => `${place ? ", " : ""}${kind} ${(share * 100).toFixed(0)} %`)),
      h("dt", {}, "Confidence"),
      h("dd", { "data-confidence": "" }, `${number(answer.confidence)} (how narrow the levels are; no calibrated probability)`),
      h("dt", {}, "Picture"),
      h("dd", {}, `${answer.format}, ${size(answer.original)} pixels, scored at ${size(answer.scored)}`),
      h("dt", {}, "Answered by"),
      h("dd", {}, `${answer.model} in ${number(answer.timings_ms.decode + answer.timings_ms.inference)} ms`),
    ),
    answer.warnings.map((warning) => h("p", { class: "notice" }, warning)),
    h("h3", {}, "Levels"),
    bars,
  );
}
