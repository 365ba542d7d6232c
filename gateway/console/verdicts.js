// How an audit's verdict is told: by a word and a colour.

import { h } from "./dom.js";

const TONES = { passes: "good", "look-at-this": "warn", "do-not-promote": "bad", "not-assessed": "" };

export const verdictTag = (verdict) => h("span", { class: `tag ${TONES[verdict] ?? ""}` }, verdict.replaceAll("-", " "));
