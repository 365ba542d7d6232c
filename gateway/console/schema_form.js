// A form from JSON schema: one field for each setting, with its bounds, its default and what it means.

import { h, replace } from "./dom.js";
import { words } from "./format.js";

export class SchemaForm {
  /** `later` are settings that go below the others, folded away. */
  constructor(properties, later = []) {
    this.fields = Object.entries(properties).map(([name, schema]) => new Field(name, schema));
    const below = this.fields.filter((field) => later.includes(field.name));
    const above = this.fields.filter((field) => !later.includes(field.name));
    this.below = below.length ? h("details", {}, h("summary", {}, "How it is run"), h("div", { class: "fields" }, below.map((field) => field.element))) : null;
    this.element = h("div", {}, h("div", { class: "fields" }, above.map((field) => field.element)), this.below);
  }

  /** Those settings that are not their default, as JSON values. Throws for a list that is none. */
  values() {
    return Object.fromEntries(this.fields.filter((field) => field.changed()).map((field) => [field.name, field.read()]));
  }

  /** Show at its field what the gateway says of it: [{field, problem}]. */
  mark(errors) {
    for (const field of this.fields) {
      const own = errors.filter((error) => error.field.split(".")[0] === field.name);
      field.mark(own.map((error) => error.problem).join("; "));
      if (own.length && this.below?.contains(field.element)) this.below.open = true;
    }
    this.element.querySelector("[aria-invalid]")?.focus();
  }
}

class Field {
  constructor(name, schema) {
    this.name = name;
    // `X or null` is X, where an empty field is null.
    this.schema = schema.anyOf ? { ...schema, ...schema.anyOf.find((one) => one.type !== "null") } : schema;
    this.optional = Boolean(schema.anyOf) || this.schema.default === undefined || this.schema.default === null;
    this.id = `setting-${name}`;
    this.input = this.make();
    this.first = this.raw();
    this.problem = h("p", { class: "small", id: `${this.id}-problem` });
    const help = h("p", { class: "small", id: `${this.id}-help` }, this.help());
    this.input.setAttribute("aria-describedby", `${this.id}-help ${this.id}-problem`);
    const label = this.schema.type === "boolean"
      ? h("label", { class: "inline" }, this.input, words(name))
      : [h("label", { for: this.id }, words(name)), this.input];
    this.element = h("div", { class: "field" }, label, help, this.problem);
  }

  make() {
    const { type, enum: options, default: given } = this.schema;
    const common = { id: this.id, "data-setting": this.name };
    if (options) return h("select", common, options.map((option) => h("option", { value: option, selected: option === given }, option)));
    if (type === "boolean") return h("input", { ...common, type: "checkbox", checked: given === true });
    const text = given === undefined || given === null ? "" : Array.isArray(given) ? given.join(", ") : given;
    if (type !== "integer" && type !== "number") return h("input", { ...common, type: "text", value: text, maxlength: this.schema.maxLength });
    const { minimum, maximum, multipleOf } = this.schema;
    // The gateway checks: a step of any keeps the browser from refusing 0.0003.
    return h("input", { ...common, type: "number", value: text, min: minimum, max: maximum, step: multipleOf ?? (type === "integer" ? 1 : "any"), required: !this.optional });
  }

  help() {
    const { description, type, items, minimum, maximum, exclusiveMinimum, exclusiveMaximum } = this.schema;
    const low = minimum ?? (exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : undefined);
    const high = maximum ?? (exclusiveMaximum !== undefined ? `below ${exclusiveMaximum}` : undefined);
    const bounds = [low, high].every((bound) => bound !== undefined) ? `${low} to ${high}.` : low !== undefined ? `At least ${low}.`.replace("At least above", "Above") : "";
    const list = type === "array" ? `Several, with commas between.${items?.enum ? ` Of: ${items.enum.join(", ")}.` : ""}` : "";
    return [description, bounds, list].filter(Boolean).join(" ");
  }

  raw() {
    return this.schema.type === "boolean" ? this.input.checked : this.input.value.trim();
  }

  changed() {
    return this.raw() !== this.first;
  }

  read() {
    const { type, items, prefixItems } = this.schema;
    const raw = this.raw();
    if (type === "boolean") return raw;
    if (type === "array") {
      const numeric = ["number", "integer"].includes(items?.type ?? prefixItems?.[0]?.type);
      return raw.split(",").map((part) => part.trim()).filter(Boolean).map((part) => (numeric ? Number(part) : part));
    }
    if (raw === "" && this.optional) return null;
    return type === "integer" || type === "number" ? Number(raw) : raw;
  }

  mark(problem) {
    if (problem) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
    replace(this.problem, problem && h("strong", { class: "wrong" }, problem));
  }
}
