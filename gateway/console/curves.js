// The curves of a job: one small plot for each figure that it reports, drawn again as points come.

import { h } from "./dom.js";
import { words } from "./format.js";
import { colour, draw, plain } from "./plot.js";

const DRAW_EVERY = 300; // ms: a quick job reports many steps a second

export class Curves {
  constructor() {
    this.none = h("p", { class: "muted" }, "No step has been reported yet.");
    this.element = h("div", { class: "columns" }, this.none);
    this.points = new Map(); // by time: what the stream repeats is there once
    this.plots = new Map(); // figure → element
    this.timer = null;
  }

  add(point) {
    this.points.set(point.time, point);
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.redraw();
    }, DRAW_EVERY);
  }

  addAll(points) {
    for (const point of points) this.add(point);
  }

  redraw() {
    const points = [...this.points.values()].sort((one, other) => one.time - other.time);
    // A training of several parts counts each from one, and an attempt begins at its checkpoint: then time is the axis.
    const rising = points.every((point, i) => i === 0 || point.step > points[i - 1].step);
    const x = (point) => (rising ? point.step : point.time - points[0].time);
    for (const name of new Set(points.flatMap((point) => Object.keys(point.metrics)))) {
      const own = points.filter((point) => name in point.metrics);
      const values = own.map((point) => point.metrics[name]);
      this.none.remove();
      const trace = () => [{ x: own.map(x), y: values, mode: own.length < 60 ? "lines+markers" : "lines", line: { color: colour("accent") } }];
      const layout = { title: { text: plain(words(name)) }, margin: { l: 56, r: 16, t: 40, b: 40 }, xaxis: { title: { text: rising ? "step" : "seconds" } } };
      draw(this.place(name), trace, layout, { height: 260, label: `${words(name)} over ${own.length} steps, last ${values.at(-1)}` }).catch(console.error);
    }
  }

  place(name) {
    if (!this.plots.has(name)) {
      this.plots.set(name, h("div", { "data-figure": name }));
      this.element.append(this.plots.get(name));
    }
    return this.plots.get(name);
  }
}
