/** The same call as a line of curl and as a Python program. */

import { address, hasToken } from "./api.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A JSON value as Python writes it. */
export function python(value, indent = 0) {
  const pad = " ".repeat(indent + 4);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const items = list
    ? value.map((item) => python(item, indent + 4))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${python(item, indent + 4)}`);
  const [open, close] = list ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${pad}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** Curl for a request {path, body}. */
export function curl({ path, body }) {
  const lines = [
    `curl${body.stream ? " --no-buffer" : ""} ${quote(address(path))}`,
    "-H 'Content-Type: application/json'",
    hasToken() && '-H "Authorization: Bearer $BERTGPT_TOKEN"',
    `-d ${quote(JSON.stringify(body))}`,
  ];
  return lines.filter(Boolean).join(" \\\n  ");
}

const KEY = 'os.environ["BERTGPT_TOKEN"]';

/** Python for a request {path, body}; `client` is the method of the openai client that makes it, if one does. */
export function program({ path, body, client }) {
  return client ? withOpenAI(body, client) : withRequests(path, body);
}

function withRequests(path, body) {
  const imports = hasToken() ? "import os\n\nimport requests" : "import requests";
  const headers = hasToken() ? `\n    headers={"Authorization": f"Bearer {os.environ['BERTGPT_TOKEN']}"},` : "";
  return `${imports}

answer = requests.post(
    ${JSON.stringify(address(path))},
    json=${python(body, 4)},${headers}
    timeout=60,
)
answer.raise_for_status()
print(answer.json())
`;
}

function withOpenAI(body, client) {
  const imports = hasToken() ? "import os\n\nfrom openai import OpenAI" : "from openai import OpenAI";
  const given = Object.entries(body)
    .map(([key, value]) => `    ${key}=${python(value, 4)},\n`)
    .join("");
  const use = body.stream
    ? 'for piece in answer:\n    print(piece.choices[0].text, end="", flush=True)\n'
    : "print(answer.data[0].embedding[:5])\n";
  return `${imports}

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${hasToken() ? KEY : '"none"'})
answer = client.${client}(
${given})
${use}`;
}
