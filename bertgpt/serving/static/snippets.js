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

const FILE = "{file}"; // stands in a body for the picture, which is read from its file
const typeOf = ({ uri }) => uri.slice(0, uri.indexOf(",") + 1);

/** The body with FILE in place of a picture: data URIs are long. */
function short(body, file) {
  return Object.fromEntries(Object.entries(body).map(([name, value]) => [name, value === file.uri ? FILE : value]));
}

/** Curl for a request {path, body}; `file`: {name, uri} of a picture in its body. */
export function curl({ path, body, file }) {
  const lines = [
    `curl${body.stream ? " --no-buffer" : ""} ${quote(address(path))}`,
    "-H 'Content-Type: application/json'",
    hasToken() && '-H "Authorization: Bearer $BERTGPT_TOKEN"',
    file ? "-d @-" : `-d ${quote(JSON.stringify(body))}`,
  ];
  const command = lines.filter(Boolean).join(" \\\n  ");
  if (!file) return command;
  // The shell bounds the length of an argument, but not that of its own printf.
  const read = `'"$(base64 < ${quote(file.name)} | tr -d '\\n')"'`;
  const text = quote(JSON.stringify(short(body, file))).replace(FILE, () => typeOf(file) + read);
  return `printf %s ${text} |\n${command}`;
}

const KEY = 'os.environ["BERTGPT_TOKEN"]';

/** Python for a request {path, body}; `client` is the method of the openai client that makes it, if one does. */
export function program({ path, body, client, file }) {
  return client ? withOpenAI(body, client) : withRequests(path, body, file);
}

function withRequests(path, body, file) {
  const modules = [file && "base64", hasToken() && "os", file && "pathlib"].filter(Boolean);
  const imports = [...modules.map((name) => `import ${name}\n`), modules.length && "\n", "import requests"];
  const headers = hasToken() ? `\n    headers={"Authorization": f"Bearer {os.environ['BERTGPT_TOKEN']}"},` : "";
  const content = file && `base64.b64encode(pathlib.Path(${JSON.stringify(file.name)}).read_bytes()).decode()`;
  const picture = file ? `picture = ${JSON.stringify(typeOf(file))} + ${content}\n` : "";
  const sent = file ? python(short(body, file), 4).replace(JSON.stringify(FILE), "picture") : python(body, 4);
  return `${imports.filter(Boolean).join("")}

${picture}answer = requests.post(
    ${JSON.stringify(address(path))},
    json=${sent},${headers}
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
