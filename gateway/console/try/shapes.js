// Input and reconstruction side by side, seen from one place, turning together.

import { h, replace } from "../dom.js";
import { number } from "../format.js";
import { colour, draw, erase, plotly } from "../plot.js";

const FOLDED = "#e2903a"; // a mesh is shaded from its colour: one for both themes
const FAR = 1.5; // of the eye, in plotly's units
const TURN = 0.5; // radians a second
const SLOW = 1000; // milliseconds of a picture that are too many: no graphics processor draws
const PAUSE = 50; // milliseconds between two pictures, and at least as long as one takes: the page answers all the same

/** Elements that draw `found` (a Reconstruction with `input_points`). They turn until something is dragged. */
export function pair(found, signal) {
  const left = h("div", { "data-shape": "input" });
  const right = h("div", { "data-shape": "reconstruction" });
  const turning = h("button", { type: "button", "aria-pressed": "false" }, "Turn");
  const note = h("span", { role: "status" });
  const points = found.input_points;
  const scene = () => frame([...points, ...found.points]);
  const cloud = () => ({ type: "scatter3d", mode: "markers", ...axes(points), marker: { size: 1.6, color: colour("accent") }, hoverinfo: "none" });
  const mesh = () => {
    const [i, j, k] = [0, 1, 2].map((corner) => found.triangles.map((triangle) => triangle[corner]));
    return { type: "mesh3d", ...axes(found.points), i, j, k, color: FOLDED, flatshading: true, hoverinfo: "none", lighting: { ambient: 0.6, diffuse: 0.6, specular: 0.1 } };
  };
  const dots = () => ({ type: "scatter3d", mode: "markers", ...axes(found.points), marker: { size: 1.6, color: FOLDED }, hoverinfo: "none" });
  const second = found.triangles ? mesh : dots;
  let angle = -0.8;
  let turned = null; // which call of `turn` turns now
  let moving = false; // the page moves the eye, not the person
  start();
  return h(
    "div",
    { class: "pair" },
    h(
      "div",
      { class: "columns" },
      h("figure", {}, h("figcaption", {}, `Input: ${number(points.length)} points`), left),
      h("figure", {}, h("figcaption", {}, found.triangles ? `Reconstruction: ${number(found.triangles.length)} triangles` : "Reconstruction"), right),
    ),
    h("div", { class: "actions" }, turning, h("button", { type: "button", onclick: () => look({ x: 0, y: -FAR, z: 0.4 }) }, "Front"), h("button", { type: "button", onclick: () => look({ x: 0, y: -0.01, z: FAR }) }, "From above"), h("span", { class: "small" }, note, "Drag to turn, scroll to come nearer.")),
  );

  async function start() {
    const layout = () => ({ scene: scene(), margin: { l: 0, r: 0, t: 0, b: 0 }, uirevision: "kept" });
    try {
      await draw(left, () => [cloud()], layout, { label: "The points of the input, in three dimensions", height: 340 });
      await draw(right, () => [second()], layout, { label: "The reconstruction, in three dimensions", height: 340 });
    } catch (error) {
      left.textContent = error.message;
      return;
    }
    for (const [one, other] of [[left, right], [right, left]]) {
      one.on("plotly_relayouting", (change) => follow(other, change));
      one.on("plotly_relayout", (change) => follow(other, change));
      one.addEventListener("pointerdown", () => turn(false));
    }
    turning.addEventListener("click", () => turn(turning.getAttribute("aria-pressed") === "false"));
    signal.addEventListener("abort", () => [left, right].forEach(erase));
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) turn(true);
  }

  async function follow(other, change) {
    const camera = change["scene.camera"];
    if (camera && !moving) (await plotly()).relayout(other, { "scene.camera": camera });
  }

  async function place(eye) {
    const library = await plotly();
    moving = true;
    await Promise.all([left, right].map((element) => library.relayout(element, { "scene.camera": { eye, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: 0 } } })));
    moving = false;
  }

  function look(eye) {
    turn(false);
    place(eye);
  }

  async function turn(on) {
    turning.setAttribute("aria-pressed", String(on));
    const mine = (turned = {});
    replace(note);
    let last = performance.now();
    while (on && turned === mine && !signal.aborted && left.isConnected) {
      const now = performance.now();
      angle += TURN * Math.min(0.2, (now - last) / 1000);
      last = now;
      await place({ x: FAR * Math.cos(angle), y: FAR * Math.sin(angle), z: 0.7 });
      await new Promise(requestAnimationFrame); // waits where the page is not seen
      const took = performance.now() - now;
      if (took > SLOW && !document.hidden && turned === mine) {
        turn(false);
        replace(note, "This browser draws too slowly to turn them by itself. ");
      }
      await new Promise((done) => setTimeout(done, Math.max(PAUSE, took)));
    }
  }
}

const axes = (points) => ({ x: points.map((point) => point[0]), y: points.map((point) => point[1]), z: points.map((point) => point[2]) });

/** A scene that holds all points with one scale for the three axes. */
function frame(points) {
  const ranges = [0, 1, 2].map((axis) => {
    const all = points.map((point) => point[axis]);
    return [Math.min(...all), Math.max(...all)];
  });
  const longest = Math.max(...ranges.map(([low, high]) => high - low)) || 1;
  const wide = ranges.map(([low, high]) => {
    const half = Math.max(high - low, longest * 0.1) * 0.55;
    return [(low + high) / 2 - half, (low + high) / 2 + half];
  });
  const axis = (range) => ({ range, title: { text: "" }, gridcolor: colour("line"), zerolinecolor: colour("line"), color: colour("muted"), showbackground: false, nticks: 5 });
  const ratio = wide.map(([low, high]) => (high - low) / longest);
  return {
    xaxis: axis(wide[0]),
    yaxis: axis(wide[1]),
    zaxis: axis(wide[2]),
    aspectmode: "manual",
    aspectratio: { x: ratio[0], y: ratio[1], z: ratio[2] },
    camera: { eye: { x: FAR * Math.cos(-0.8), y: FAR * Math.sin(-0.8), z: 0.7 } },
  };
}
