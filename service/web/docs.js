// The list of calls, drawn from openapi.json.

import { byId, make } from "./dom.js";

const VERBS = ["get", "post", "put", "patch", "delete"];

/** Return the paragraphs of a description; `code` is its only markup. */
function prose(text = "") {
  return text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => make("p", {}, ...inline(paragraph)));
}

const inline = (text) => text.split(/`+/).map((part, number) => (number % 2 ? make("code", {}, part) : part));

function kindOf(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.filter(({ type }) => type !== "null").map(kindOf).join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items)}`;
  if (schema.contentMediaType || schema.format === "binary") return "file";
  return schema.enum ? schema.enum.join(" | ") : schema.type ?? "anything";
}

function table(title, rows) {
  if (!rows.length) return [];
  const cells = rows.flatMap(([name, about, ...more]) => [
    make("dt", {}, make("code", {}, name)),
    make("dd", {}, make("span", { className: "soft" }, about), ...more.filter(Boolean).flatMap((text) => [make("br"), ...inline(text)])),
  ]);
  return [make("h3", {}, title), make("dl", {}, ...cells)];
}

function fields(body, schemas) {
  return Object.entries(body?.content ?? {}).flatMap(([type, { schema = {} }]) => {
    const { properties = {}, required = [] } = schema.$ref ? schemas[kindOf(schema)] : schema;
    const rows = Object.entries(properties).map(([name, each]) => [
      name, `${kindOf(each)}${required.includes(name) ? ", required" : ""}`, each.description,
    ]);
    return table(`Body, ${type}`, rows);
  });
}

function answers(responses) {
  return Object.entries(responses).map(([code, { description, content = {} }]) => [
    code, Object.entries(content).map(([type, { schema }]) => (schema ? `${type}: ${kindOf(schema)}` : type)).join(", "), description,
  ]);
}

function call(path, verb, operation, schemas) {
  const parameters = (operation.parameters ?? []).map((each) => [
    each.name, `${each.in}, ${kindOf(each.schema)}${each.required ? ", required" : ""}`, each.description,
  ]);
  const [first, ...rest] = (operation.description ?? operation.summary ?? "").split(/\n\s*\n/);
  const summary = make("summary", {}, make("span", { className: "verb" }, verb.toUpperCase()), make("code", {}, path),
    make("span", { className: "soft" }, ...inline(first)));
  return make("details", { className: "call" }, summary, make("div", {}, ...prose(rest.join("\n\n")),
    ...table("Parameters", parameters), ...fields(operation.requestBody, schemas), ...table("Answers", answers(operation.responses))));
}

async function draw() {
  const { info, paths, components } = await (await fetch("openapi.json")).json();
  byId("about").replaceChildren(...prose(info.description));
  const groups = new Map();
  for (const [path, operations] of Object.entries(paths)) {
    for (const verb of VERBS.filter((each) => operations[each])) {
      const [tag = "other"] = operations[verb].tags ?? [];
      groups.set(tag, [...(groups.get(tag) ?? []), call(path, verb, operations[verb], components.schemas)]);
    }
  }
  byId("calls").replaceChildren(...[...groups].flatMap(([tag, calls]) => [make("h2", {}, tag), ...calls]));
  byId("note").remove();
}

draw().catch((error) => { byId("note").textContent = `openapi.json cannot be read: ${error.message}`; });
