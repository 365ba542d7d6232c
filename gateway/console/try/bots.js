import { h, replace } from "../dom.js";

export async function page(root, { title }) {
  title("Try");
  replace(root, h("h1", {}, "Try: bots"));
}
