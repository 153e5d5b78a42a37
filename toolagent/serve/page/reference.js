// The API's description, drawn from the server's own openapi.json.

import { make } from "./lane.js";

const $ = (id) => document.getElementById(id);

/** A schema in a few words: 'list of integer', 'string or null'. */
function words(schema) {
  if (!schema) return "anything";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(words).join(" or ");
  if (schema.enum) return `one of ${schema.enum.join(" ")}`;
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${words(schema.items)}`;
  return schema.type ?? "anything";
}

function table(schema) {
  const required = new Set(schema.required);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, name)),
      make("td", {}, words(field), required.has(name) ? "" : " (optional)"),
      make("td", {}, field.description ?? ""),
    ),
  );
  return make("table", {}, make("tbody", {}, ...rows));
}

function operation(path, method, told) {
  const parts = [make("p", {}, told.description ?? told.summary ?? "")];
  const body = told.requestBody?.content["application/json"].schema;
  for (const { name, schema } of told.parameters ?? []) {
    parts.push(make("p", {}, make("code", {}, `?${name}=`), ` ${words(schema)}`));
  }
  if (body) parts.push(make("p", {}, "Takes a ", make("code", {}, words(body)), "."));
  for (const [status, { description, content }] of Object.entries(told.responses)) {
    const schema = content?.["application/json"]?.schema;
    parts.push(make("p", {}, make("code", {}, status), ` ${schema ? words(schema) : ""} `, description));
  }
  const command =
    method === "get"
      ? `curl ${new URL(path, location)}`
      : `curl ${new URL(path, location)} -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(told.example)}'`;
  parts.push(make("pre", { tabindex: "0", "aria-label": "Command" }, command));
  return make("section", { class: "panel" }, make("h2", {}, `${method.toUpperCase()} ${path}`), ...parts);
}

const [document_, problem] = await Promise.all(
  ["openapi.json", "api/example"].map((path) => fetch(path).then((response) => response.json())),
);
const { info, paths, components } = document_;
delete problem.stage;
const examples = { "/api/play": problem, "/api/play/batch": { problems: [problem, problem] } };
$("about").textContent = info.description;
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, told] of Object.entries(methods)) {
    $("operations").append(operation(path, method, { ...told, example: examples[path] }));
  }
}
const schemas = make("section", { class: "panel" }, make("h2", {}, "Objects"));
for (const [name, schema] of Object.entries(components.schemas)) {
  if (/Validation/.test(name)) continue; // FastAPI's own, which nothing here answers with
  schemas.append(make("h3", {}, name), make("p", {}, schema.description ?? ""), table(schema));
}
$("operations").append(schemas);
