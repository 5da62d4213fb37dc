/** The card with the code of a call, as curl or Python. */

import { copy, h, newId } from "./dom.js";
import { curl, program } from "./snippets.js";
import { t } from "./strings.js";

let kind = "curl"; // what the reader chose last
let request = null; // what is shown

/** Shows the code of this request: {path, body, client}. */
export function codeOf(newRequest) {
  request = newRequest;
  document.getElementById("code").textContent = kind === "curl" ? curl(request) : program(request);
}

/** The card; `say(text)` reads a text aloud. */
export function codeCard(say) {
  const button = h("button", { type: "button", on: { click: () => copyCode(button, say) } }, t("copy"));
  const choose = (name) => {
    kind = name;
    codeOf(request);
  };
  const kinds = [
    ["curl", "curl"],
    ["python", "Python"],
  ].map(([name, shown]) => {
    const id = newId();
    const props = { type: "radio", name: "code", id, checked: kind === name, on: { change: () => choose(name) } };
    return [h("input", props), h("label", { for: id }, shown)];
  });
  return h(
    "section",
    { class: "card code", "aria-labelledby": "code-title" },
    h(
      "div",
      { class: "head" },
      h("h3", { id: "code-title" }, t("code")),
      h("div", { class: "choice", role: "group", "aria-labelledby": "code-title" }, kinds),
      button,
    ),
    h("pre", { tabindex: "0" }, h("code", { id: "code" })),
  );
}

async function copyCode(button, say) {
  const copied = await copy(document.getElementById("code").textContent);
  button.textContent = t(copied ? "copied" : "copy_failed");
  say(button.textContent);
  setTimeout(() => {
    button.textContent = t("copy");
  }, 2000);
}
