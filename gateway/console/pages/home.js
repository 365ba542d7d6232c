// Home: what is served now, and what runs.

import { h, replace } from "../dom.js";

export async function page(root, { title }) {
  title("Home");
  replace(root, h("h1", {}, "Home"));
}
