// Curves, heat maps and shapes by plotly.js, which is loaded when the first is drawn and follows the console's colours.

import { h } from "./dom.js";

// plotly.js would add a stylesheet for its maps, which the content security policy refuses; this id keeps it from it.
const MAPS_STYLE = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";
const drawn = new Map(); // element → [traces, layout], to draw again in other colours
let library = null;

/** plotly.js itself. */
export function plotly() {
  library ??= new Promise((loaded, failed) => {
    if (!document.getElementById(MAPS_STYLE)) document.head.append(h("meta", { id: MAPS_STYLE }));
    const script = document.createElement("script");
    script.src = new URL("plotly.min.js", import.meta.url);
    script.onload = () => loaded(window.Plotly);
    script.onerror = () => {
      library = null; // the next drawing tries again
      failed(new Error("The plot library could not be loaded."));
    };
    document.head.append(script);
  });
  return library;
}

/** Text as text: plotly reads markup and entities in labels. */
export const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** The colour that the console's stylesheet has under a name, for example "accent". */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** `colour` mixed with transparency, `share` 0–1. */
export const faded = (hex, share) => `${hex}${Math.round(share * 255).toString(16).padStart(2, "0")}`;

// A drawing takes its element's size, also where that changes, or where the element comes into the page later.
const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (drawn.has(target) && contentRect.width > 0) window.Plotly.Plots.resize(target);
  }
});

/**
 * Draw into `element`, or draw anew there. `traces` and `layout` are functions of nothing where their colours follow the
 * theme. `label` says in words what is to be seen; `height` is in pixels; `modebar` are names of plotly's buttons.
 */
export async function draw(element, traces, layout = {}, { label, height, modebar = [] } = {}) {
  element.classList.add("plot");
  if (height) element.style.height = element.style.minHeight = `${height}px`;
  const library = await plotly();
  if (label) {
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", label);
  }
  const config = { displaylogo: false, displayModeBar: modebar.length > 0, modeBarButtons: [modebar] };
  drawn.set(element, [traces, layout]);
  await library.react(element, value(traces), dressed(value(layout)), config);
  sizes.observe(element);
}

/** Forget a drawing whose page was left. */
export function erase(element) {
  drawn.delete(element);
  sizes.unobserve(element);
  if (window.Plotly) window.Plotly.purge(element);
}

const value = (given) => (typeof given === "function" ? given() : given);

function dressed(layout) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  const axes = { xaxis: {}, yaxis: {}, ...layout };
  const styled = Object.fromEntries(
    Object.entries(axes).map(([name, given]) => [name, /^[xy]axis\d*$/.test(name) ? { ...axis, ...given } : given]),
  );
  return {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    colorway: [colour("accent"), colour("warn"), colour("good"), colour("bad"), colour("muted")],
    margin: { l: 48, r: 16, t: 16, b: 40 },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") } },
    ...styled,
    font: { family: "system-ui, sans-serif", size: 13, color: colour("text"), ...layout.font },
  };
}

document.addEventListener("themechange", () => {
  for (const [element, [traces, layout]] of drawn) {
    if (!element.isConnected) erase(element);
    else window.Plotly.react(element, value(traces), dressed(value(layout)));
  }
});
