// The API's documentation: renders /openapi.json with text nodes only.

const content = document.getElementById("content");
const token = document.getElementById("token");

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of (${typeOf(schema.items)})`;
  if (schema.type === "object" && schema.additionalProperties) return `object of (${typeOf(schema.additionalProperties)})`;
  return schema.type || "any";
}

function fields(schema) {
  const rows = Object.entries(schema.properties || {}).map(([name, field]) => {
    const required = (schema.required || []).includes(name) ? "required" : "";
    const fallback = "default" in field ? `default ${JSON.stringify(field.default)}` : required;
    return element(
      "tr",
      element("td", element("code", name)),
      element("td", element("code", typeOf(field))),
      element("td", fallback),
      element("td", field.description || ""),
    );
  });
  const head = element("tr", ...["field", "type", "", "meaning"].map((text) => element("th", text)));
  return element("table", element("thead", head), element("tbody", ...rows));
}

function operation(path, method, spec, schemas) {
  const body = spec.requestBody?.content["application/json"].schema;
  const answers = Object.entries(spec.responses).map(([status, answer]) => {
    const types = Object.entries(answer.content || {}).map(([media, { schema }]) => `${media}: ${typeOf(schema)}`);
    return element("tr", element("td", element("code", status)), element("td", answer.description), element("td", types.join("; ")));
  });
  const parts = [element("summary", element("code", `${method.toUpperCase()} ${path}`), ` ${spec.summary}`)];
  if (body) {
    const name = typeOf(body);
    parts.push(element("h3", "Request: ", name), schemas[name] ? fields(schemas[name]) : "");
  }
  parts.push(element("h3", "Answers"), element("table", element("tbody", ...answers)));
  return element("details", ...parts);
}

async function show() {
  const headers = token.value ? { Authorization: `Bearer ${token.value}` } : {};
  const answer = await fetch("/openapi.json", { headers });
  if (!answer.ok) {
    content.replaceChildren(element("p", (await answer.json()).error.message));
    return;
  }
  const { paths, components } = await answer.json();
  const operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, spec]) => operation(path, method, spec, components.schemas)),
  );
  const types = Object.entries(components.schemas).map(([name, schema]) =>
    element("details", element("summary", element("code", name), ` ${schema.description || ""}`), fields(schema)),
  );
  content.replaceChildren(element("h2", "Endpoints"), ...operations, element("h2", "Types"), ...types);
}

token.addEventListener("change", show);
show();
