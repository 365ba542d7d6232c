// A report's figures as plots.

import { h } from "./dom.js";
import { colour, draw, plain } from "./plot.js";

/** The element of one figure {title, kind, x_label, y_label, series, z, rows}; it is drawn once it is in the page. */
export function drawFigure(figure) {
  const place = h("div", {});
  const traces = () => (figure.kind === "heatmap" ? [heatmap(figure)] : figure.series.map((series) => trace(figure.kind, series)));
  const layout = {
    title: { text: plain(figure.title), font: { size: 14 } },
    margin: { l: 56, r: 16, t: 48, b: 48 },
    xaxis: { title: { text: plain(figure.x_label) } },
    yaxis: { title: { text: plain(figure.y_label) } },
    showlegend: figure.series.length > 1,
    legend: { orientation: "h", y: -0.3 },
  };
  const names = figure.series.map((series) => series.name).filter(Boolean).join(", ");
  draw(place, traces, layout, { height: 340, label: `${figure.title}: ${figure.y_label} by ${figure.x_label}${names ? `; ${names}` : ""}` }).catch(console.error);
  return place;
}

// Words of a report are text to plotly as well.
const told = (values) => values.map((value) => (typeof value === "string" ? plain(value) : value));

function trace(kind, { name, x, y, low, high }) {
  const interval = low && high && {
    type: "data",
    ...(kind === "bar" && { color: colour("text") }), // on its bar
    symmetric: false,
    array: y.map((value, i) => (high[i] === null ? null : high[i] - value)),
    arrayminus: y.map((value, i) => (low[i] === null ? null : value - low[i])),
  };
  const form = kind === "bar" ? { type: "bar" } : { mode: kind === "scatter" ? "markers" : "lines+markers" };
  return { ...form, name: plain(name), x: told(x), y, ...(interval && { error_y: interval }) };
}

function heatmap({ series, z, rows }) {
  const y = rows?.length ? told(rows) : undefined;
  return { type: "heatmap", x: series[0] && told(series[0].x), y, z, colorscale: [[0, colour("surface")], [1, colour("accent")]] };
}
