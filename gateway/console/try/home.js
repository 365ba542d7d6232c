// The four domains, each a click away from an answer.

import { h, replace } from "../dom.js";

const DOMAINS = [
  ["iqa", "Image quality", "Drop a photo: a score from 0 to 100, what is wrong with it, and where."],
  ["bots", "Bots", "Paste an account: how probably it is a bot, and what speaks for it and against."],
  ["pointcloud", "Point clouds", "Drop a mesh or a cloud: its reconstruction beside it, a codeword of a kilobyte, what it resembles."],
  ["inlining", "Inlining", "Paste C or LLVM IR: which calls to inline so that the code gets smaller, and how much."],
];

export async function page(root, { title }) {
  title("Try");
  const card = ([path, name, text]) => h("section", { class: "panel" }, h("h2", {}, h("a", { href: `#/try/${path}` }, name)), h("p", {}, text));
  replace(root, h("h1", {}, "Try"), h("p", {}, "Each page has an example a click away, and shows the command that does the same."), h("div", { class: "cards" }, DOMAINS.map(card)));
}
