// Point clouds: a file's reconstruction beside it, its codeword, its classes and the shapes of an index it resembles.

import { address, get, request, save } from "../api.js";
import { h, replace } from "../dom.js";
import { bytes, number } from "../format.js";
import { may } from "../session.js";
import { failure, loading, refused } from "../states.js";
import { commandsPanel, curl, literal, python, word } from "./commands.js";
import { dropPlace } from "./drop.js";
import { pair } from "./shapes.js";

const EXAMPLES = [["chip.stl", "A chip's mesh (STL, millimetres)"]];
const FORMS = ".ply,.pcd,.xyz,.txt,.off,.obj,.stl,.glb,.las,.laz,.npy";

export async function page(root, { title, signal }) {
  title("Try point clouds");
  const commands = commandsPanel();
  const result = h("div", {});
  const seed = h("input", { id: "seed", type: "number", min: 0, max: 2 ** 31 - 1, value: 0, onchange: () => file && look(file) });
  let file = null;
  let asked = null;
  const taken = (given) => look((file = given));
  replace(
    root,
    h("h1", {}, "Point clouds"),
    h("p", {}, "A network folds a sheet into the shape of a cloud or a mesh, from a codeword of 512 numbers. The one that comes with Fourfold knows electronic components; other shapes come back blunted."),
    h(
      "section",
      { class: "panel", "aria-label": "Input" },
      dropPlace({ id: "shape", label: "A cloud or a mesh: PLY, PCD, XYZ, OFF, OBJ, STL, GLB, LAS, LAZ or NPY", accept: FORMS, examples: EXAMPLES, taken }),
      h("details", {}, h("summary", {}, "Sampling"), h("div", { class: "field" }, h("label", { for: "seed" }, "Seed"), seed, h("p", { class: "small" }, "A mesh, and a cloud of more than 2,048 points, is sampled; the same seed takes the same points."))),
    ),
    result,
    commands.panel,
  );
  commands.show(linesOf("mesh.stl", 0));

  async function look(given) {
    const mine = (asked = {});
    commands.show(linesOf(given.name, Number(seed.value)));
    replace(result, loading("Reading, folding…"));
    const ask = (path, parameters, as = "json") => {
      const options = { body: given, headers: { "Content-Type": "application/octet-stream" }, signal, as };
      return request("POST", address(`/v1/pointcloud/${path}`, { seed: seed.value, ...parameters }), options);
    };
    try {
      const folded = await ask("reconstruct", { input_points: true });
      if (mine !== asked || signal.aborted) return;
      replace(result, reconstruction(folded, given, ask, signal), h("div", { class: "columns" }, codeword(given, ask), classes(ask), nearest(ask, signal)));
    } catch (error) {
      if (signal.aborted || mine !== asked || error.name === "AbortError") return;
      replace(result, failure(error, refused(error) ? null : () => look(given)));
    }
  }
}

function reconstruction(found, file, ask, signal) {
  const told = found.input;
  const how = { area: "sampled by area from", sample: "drawn from", voxel: "by cells from", none: "all of" }[told.reduction];
  const what = told.triangles ? `${number(told.triangles)} triangles` : `${number(told.points)} points`;
  const problem = h("div", {});
  const glb = async () => {
    replace(problem);
    try {
      save(await ask("reconstruct", { out: "glb", measure: false }, "blob"), `${stem(file.name)}-folded.glb`);
    } catch (error) {
      replace(problem, failure(error));
    }
  };
  const box = told.box.high.map((high, axis) => number(high - told.box.low[axis])).join(" × ");
  return h(
    "section",
    { class: "panel", "aria-label": "Reconstruction" },
    found.out_of_distribution && h("p", { class: "notice", "data-unusual": "" }, "This shape is unlike those of the training: do not expect much."),
    told.warnings.map((warning) => h("p", { class: "notice" }, warning)),
    pair(found, signal),
    h(
      "dl",
      {},
      h("dt", {}, "Read"),
      h("dd", { "data-read": "" }, `${told.format}, ${number(told.taken)} points ${how} ${what}; ${box} in the file's units`),
      h("dt", {}, "Off by"),
      h("dd", { "data-chamfer": "" }, `${number(found.distance.chamfer)} on average, ${(100 * found.distance.relative).toFixed(1)} % of the shape's radius`),
      h("dt", {}, "Answered by"),
      h("dd", {}, `${found.model} in ${number(found.timings_ms.read + found.timings_ms.inference)} ms`),
    ),
    h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: glb }, "Download the mesh (GLB)")),
    problem,
  );
}

function codeword(file, ask) {
  const draw = (found) => {
    const packed = Uint8Array.from(atob(found.encoded), (letter) => letter.charCodeAt(0));
    return [
      h("p", { "data-codeword": "" }, h("strong", {}, bytes(found.bytes)), `: ${found.codeword.length} numbers as ${found.precision}, ${number(found.ratio)} times smaller than ${number(found.input.taken)} points.`),
      h("button", { type: "button", onclick: () => save(new Blob([packed]), `${stem(file.name)}.ffcw`) }, "Download the codeword"),
    ];
  };
  return part("Codeword", () => ask("encode", { out: "json" }), draw);
}

function classes(ask) {
  const row = ({ label, probability }) => h("tr", {}, h("th", { scope: "row" }, label), h("td", { class: "number" }, `${(100 * probability).toFixed(1)} %`), h("td", {}, h("meter", { min: 0, max: 1, value: probability, "aria-label": `Probability of ${label}` })));
  const draw = (found) => h("table", { "data-classes": "" }, h("thead", {}, h("tr", {}, ["Class", "Probability", ""].map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {}))))), h("tbody", {}, found.classes.map(row)));
  return part("Classes", () => ask("classify", {}), draw);
}

function nearest(ask, signal) {
  const hit = (found) =>
    h("li", {}, h("img", { src: `data:image/png;base64,${found.preview_png}`, alt: "", width: 96, height: 96 }), h("span", {}, found.name, found.label && h("span", { class: "muted" }, ` (${found.label})`), h("br"), h("span", { class: "small" }, `distance ${number(found.distance)}, of the points ${number(found.chamfer)}`)));
  const draw = (found) => [h("p", { class: "small" }, `Of ${number(found.shapes)} shapes of the index of job ${found.index}.`), h("ol", { class: "hits", "data-hits": "" }, found.hits.map(hit))];
  const missing = () =>
    h("div", { "data-no-index": "" }, h("p", {}, "There is no index to search yet. Upload a folder of shapes and make one:"), h("pre", { tabindex: "0" }, "fourfold datasets add shapes --kind pointcloud\nfourfold pointcloud index shapes"), h("p", {}, h("a", { href: "#/datasets" }, "Upload shapes here")));
  const load = async () => ((await indexed(signal)) ? ask("search", { count: 6 }) : null);
  return part("Nearest shapes", load, (found) => (found ? draw(found) : missing()), (error) => error.status === 404 && missing());
}

/** Whether a job has made an index; true where the key may not look at jobs. */
async function indexed(signal) {
  if (!may("train")) return true;
  const found = await get("/v1/jobs?domain=pointcloud&state=succeeded&limit=200", { signal });
  return found.jobs.some((job) => job.kind === "index");
}

/** A panel with an answer of its own; `known(error)` may say what an error means here. */
function part(name, load, draw, known = () => null) {
  const place = h("div", {}, loading());
  const fill = async () => {
    try {
      replace(place, draw(await load()));
    } catch (error) {
      if (error.name !== "AbortError") replace(place, known(error) || failure(error, refused(error) ? null : fill));
    }
  };
  fill();
  return h("section", { class: "panel", "aria-label": name }, h("h2", {}, name), place);
}

const stem = (name) => name.replace(/\.[^.]*$/, "") || "shape";

function linesOf(name, seed) {
  const path = address("/v1/pointcloud/reconstruct", { out: "glb", seed: seed || null });
  const given = seed ? `, seed=${literal(seed)}` : "";
  return {
    curl: curl(path, [`--data-binary ${word(`@${name}`)}`, `-o ${word(`${stem(name)}-folded.glb`)}`]),
    python: python(`found = client.reconstruct(${literal(name)}${given})`, 'print(found["distance"], len(found["points"]))', `print(client.classify(${literal(name)}${given})["classes"][0])`),
    fourfold: `fourfold pointcloud reconstruct ${word(name)} --out ${word(`${stem(name)}-folded.glb`)}${seed ? ` --seed ${seed}` : ""}\nfourfold pointcloud encode ${word(name)}\nfourfold pointcloud classify ${word(name)}\nfourfold pointcloud search ${word(name)}`,
  };
}
