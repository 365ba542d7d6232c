// The accounts around one, and the edges among them, drawn in rings by how many edges away they are.

import { h } from "../dom.js";
import { number } from "../format.js";
import { colour, draw, plain } from "../plot.js";
import { identity, nameOf } from "./accounts.js";

const MOST = 150; // accounts drawn; more would be a smudge
const APART = 0.035; // between edges of the same two accounts

/**
 * A figure of `asked.neighbourhood` around the account of `row`. `edges` are an explanation's: what it says of the edges
 * that the model looked at.
 */
export function neighbourhood(asked, row, evidence, edges) {
  const accounts = [...asked.accounts, ...asked.neighbourhood.accounts ?? []];
  const names = new Map(accounts.map((account, place) => [identity(account), nameOf(account, place)]));
  const root = identity(asked.accounts[row]);
  const given = (asked.neighbourhood.edges ?? []).filter(({ source, target }) => names.has(String(source)) && names.has(String(target)));
  const places = rings(root, names, given);
  const drawn = given.filter(({ source, target }) => places.has(String(source)) && places.has(String(target)));
  const place = h("div", { "data-neighbourhood": "" });
  const looked = evidence.edges > 0 ? `The answer looked at ${number(evidence.edges)} edges among ${number(evidence.accounts + 1)} accounts.` : "The model that answered looks at no edges: train one on a graph of yours, and promote it, to have them count.";
  const left = names.size - places.size;
  const label = `${places.size} accounts and ${drawn.length} edges around ${names.get(root)}`;
  draw(place, () => traces(root, places, names, drawn), layout(places), { label, height: 380 }).catch((error) => (place.textContent = error.message));
  const strongest = edges.slice(0, 5).map((edge) => h("li", {}, `${names.get(edge.source) ?? edge.source} ${edge.relation} ${names.get(edge.target) ?? edge.target}: `, h("span", { class: "mono" }, signed(edge.importance))));
  return h(
    "section",
    { class: "panel", "aria-label": "Neighbourhood" },
    h("h2", {}, "Neighbourhood"),
    h("p", { class: "small" }, `${label}.`, left > 0 && ` ${number(left)} more accounts are not drawn.`),
    place,
    h("p", { "data-looked": "" }, looked),
    strongest.length > 0 && [h("h3", {}, "Strongest edges, by how much the logit of a bot falls without them"), h("ul", {}, strongest)],
  );
}

const signed = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`;

/** Account → [x, y]: the root in the middle, then a ring for each edge that lies between. */
function rings(root, names, edges) {
  const near = new Map([...names.keys()].map((id) => [id, []]));
  for (const { source, target } of edges) {
    near.get(String(source)).push(String(target));
    near.get(String(target)).push(String(source));
  }
  const ring = new Map([[root, 0]]);
  for (const id of ring.keys()) {
    for (const next of near.get(id) ?? []) if (!ring.has(next)) ring.set(next, ring.get(id) + 1);
  }
  const outside = Math.max(...ring.values()) + 1;
  for (const id of names.keys()) if (!ring.has(id)) ring.set(id, outside);
  const places = new Map();
  const kept = [...ring].slice(0, MOST);
  for (let radius = 0; radius <= outside; radius++) {
    const members = kept.filter(([, at]) => at === radius).map(([id]) => id);
    members.forEach((id, place) => {
      const angle = (2 * Math.PI * place) / members.length + 0.4 * radius;
      places.set(id, [radius * Math.cos(angle), radius * Math.sin(angle)]);
    });
  }
  return places;
}

function traces(root, places, names, edges) {
  const relations = [...new Set(edges.map((edge) => String(edge.relation)))];
  const lines = relations.map((relation, number) => {
    const trace = { type: "scatter", mode: "lines+markers", name: plain(relation), x: [], y: [], hoverinfo: "skip", line: { width: 1.5 }, marker: { symbol: "arrow", angleref: "previous", size: [], standoff: 9, opacity: 1 } };
    for (const edge of edges.filter((one) => String(one.relation) === relation)) {
      const [from, to] = [places.get(String(edge.source)), places.get(String(edge.target))];
      const length = Math.hypot(to[0] - from[0], to[1] - from[1]) || 1;
      const aside = (number - (relations.length - 1) / 2) * APART * (edge.source < edge.target ? 1 : -1);
      const shift = [(-(to[1] - from[1]) / length) * aside, ((to[0] - from[0]) / length) * aside];
      trace.x.push(from[0] + shift[0], to[0] + shift[0], null);
      trace.y.push(from[1] + shift[1], to[1] + shift[1], null);
      trace.marker.size.push(0, 11, 0);
    }
    return trace;
  });
  const ids = [...places.keys()];
  const dots = {
    type: "scatter",
    mode: ids.length <= 40 ? "markers+text" : "markers",
    x: ids.map((id) => places.get(id)[0]),
    y: ids.map((id) => places.get(id)[1]),
    text: ids.map((id) => plain(names.get(id).slice(0, 40))),
    textposition: "top center",
    hovertemplate: "%{text}<extra></extra>",
    showlegend: false,
    cliponaxis: false,
    marker: { size: ids.map((id) => (id === root ? 18 : 12)), color: ids.map((id) => colour(id === root ? "accent" : "muted")), line: { width: 1, color: colour("raised") } },
  };
  return [...lines, dots];
}

function layout(places) {
  const far = Math.max(...[...places.values()].flat().map(Math.abs), 1) * 1.3;
  const axis = { visible: false, range: [-far, far] };
  return { xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, legend: { orientation: "h" }, margin: { l: 8, r: 8, t: 8, b: 8 } };
}
