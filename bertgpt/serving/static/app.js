/** The page: which tool and model are shown, the form of a tool, its call, its result. */

import { CallError, call, setToken } from "./api.js";
import { codeCard, codeOf } from "./code.js";
import { field, h, select } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { startSettings } from "./settings.js";
import { language, t } from "./strings.js";
import { TOOLS } from "./tools.js";

const state = {
  models: [],
  failure: null, // of the list of models
  tool: null,
  model: null, // name of the model that was chosen last
  values: {}, // what is typed, by tool
  outcomes: {}, // {answer, values, model} or {error} by tool
};
const SLOW = 4000; // milliseconds after which a wait is explained
let running = null; // {tool, controller} of the call under way

const $ = (id) => document.getElementById(id);
/** Models that can do it, first those that can do what it needs most, and were made for it. */
const modelsFor = (tool) => {
  const needs = (model) => tool.needs.findIndex((word) => model.capabilities.includes(word));
  const other = (model) => Number(tool.avoids?.some((word) => model.capabilities.includes(word)) ?? false);
  return state.models.filter((model) => needs(model) >= 0).sort((a, b) => needs(a) - needs(b) || other(a) - other(b));
};
const shownTools = () => TOOLS.filter((tool) => modelsFor(tool).length);
const modelOf = (tool) => modelsFor(tool).find((model) => model.id === state.model) ?? modelsFor(tool)[0];
/** English first in both languages: Chinese models know English letters, most others do not know Chinese characters. */
const examplesOf = (tool, model) => {
  const { en, zh } = EXAMPLES[tool.id](model);
  return [...en, ...zh];
};
const valuesOf = (tool, model) => ({
  ...tool.defaults(model),
  ...(state.values[tool.id] ?? examplesOf(tool, model)[0].values),
});

function showStrings() {
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]"))
    element.setAttribute("aria-label", t(element.dataset.label));
  $("language").value = language();
}

// ---- address: #tool=…&model=… ----

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  state.model = wanted.get("model") ?? state.model;
  const tools = shownTools();
  state.tool = tools.find((tool) => tool.id === wanted.get("tool")) ?? state.tool ?? tools[0] ?? null;
}

function writeAddress() {
  const hash = new URLSearchParams({ tool: state.tool.id, model: modelOf(state.tool).id });
  history.replaceState(null, "", `#${hash}`);
}

// ---- list of models and tabs ----

async function loadModels() {
  $("panel").replaceChildren(h("p", { class: "empty" }, t("loading")));
  try {
    state.models = (await call("v1/models")).data;
    state.failure = null;
    $("token").hidden = true;
  } catch (error) {
    state.failure = error;
    if (error.kind === "token") showTokenForm();
  }
  readAddress();
  render();
}

function showTokenForm() {
  const form = $("token");
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  form.replaceChildren(
    field(t("token_label"), input, t("token_note")),
    h("button", { type: "submit", class: "primary" }, t("token_use")),
  );
  form.onsubmit = (event) => {
    event.preventDefault();
    setToken(input.value);
    if (state.failure) loadModels();
    else {
      form.hidden = true;
      start();
    }
  };
  form.hidden = false;
  input.focus();
}

function renderTabs() {
  const tools = shownTools();
  const tabs = tools.map((tool) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${tool.id}`,
        "aria-controls": "panel",
        "aria-selected": String(tool === state.tool),
        tabindex: tool === state.tool ? "0" : "-1",
        on: { click: () => choose(tool), keydown: (event) => walk(event, tools.indexOf(tool)) },
      },
      t(tool.id),
    ),
  );
  $("tabs").replaceChildren(...tabs);
  const missing = state.models.length ? TOOLS.filter((tool) => !tools.includes(tool)) : [];
  $("missing").textContent = missing.length
    ? t("missing", { tools: missing.map((tool) => t(tool.id)).join(t("comma")) })
    : "";
}

function walk(event, index) {
  const tools = shownTools();
  const steps = {
    ArrowRight: index + 1,
    ArrowDown: index + 1,
    ArrowLeft: index - 1,
    ArrowUp: index - 1,
    Home: 0,
    End: -1,
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(tools.at(steps[event.key] % tools.length));
  $(`tab-${state.tool.id}`).focus();
}

function choose(tool) {
  if (tool === state.tool) return;
  stop();
  state.tool = tool;
  render();
}

// ---- panel ----

function render() {
  showStrings();
  renderTabs();
  const panel = $("panel");
  const { tool } = state;
  if (!tool || state.failure) {
    for (const name of ["role", "aria-labelledby"]) panel.removeAttribute(name);
    const again = h("button", { type: "button", on: { click: loadModels } }, t("retry"));
    panel.replaceChildren(
      state.failure
        ? h("div", { class: "error", role: "alert" }, h("p", {}, state.failure.message), again)
        : h("p", { class: "empty" }, t("no_models")),
    );
    return;
  }
  writeAddress();
  $(`tab-${tool.id}`).scrollIntoView({ block: "nearest", inline: "nearest" });
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", `tab-${tool.id}`);
  const model = modelOf(tool);
  panel.replaceChildren(
    h("h2", {}, t(tool.id)),
    h("p", { class: "about" }, t(`${tool.id}_about`, { mask: model.mask ?? "" })),
    h("div", { class: tool.broad ? "columns broad" : "columns" }, formOf(tool, model), resultCard()),
    codeCard((text) => {
      $("status").textContent = text;
    }),
  );
  showCode();
  showOutcome();
}

function modelField(tool, model) {
  const facts = [model.architecture, model.max_len > 1 && t("max_len", { count: model.max_len })]
    .filter(Boolean)
    .join(" · ");
  const names = modelsFor(tool).map(({ id }) => [id, id]);
  const change = (name) => {
    state.model = name;
    stop();
    render();
    $("model").focus();
  };
  const control = select(names, model.id, change);
  control.id = "model";
  return field(t("model"), control, facts);
}

function formOf(tool, model) {
  const values = valuesOf(tool, model);
  const set = (name, value) => {
    state.values[tool.id] = { ...valuesOf(tool, model), [name]: value };
    showCode();
  };
  const examples = examplesOf(tool, model).map((example) => {
    const pick = () => {
      state.values[tool.id] = { ...valuesOf(tool, model), ...example.values };
      render();
      start();
    };
    return h("button", { type: "button", class: "example", on: { click: pick } }, example.title);
  });
  return h(
    "form",
    {
      id: "form",
      class: "card",
      on: {
        submit: (event) => {
          event.preventDefault();
          start();
        },
        keydown: (event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            if ($("form").reportValidity()) start();
          }
        },
      },
    },
    modelField(tool, model),
    tool.form(values, set, model),
    h(
      "div",
      { class: "go" },
      h("button", { type: "submit", class: "primary", id: "run", on: { click: stopInstead } }, t("run")),
      h("span", { class: "note" }, t("shortcut")),
    ),
    h(
      "div",
      { class: "examples", role: "group", "aria-label": t("examples") },
      h("span", { class: "note" }, t("examples")),
      examples,
    ),
  );
}

const resultCard = () =>
  h(
    "section",
    { class: "card result", "aria-labelledby": "result-title" },
    h(
      "div",
      { class: "head" },
      h("h3", { id: "result-title" }, t("result")),
      h("span", { id: "status", class: "note", role: "status" }),
    ),
    h("div", { id: "result" }),
  );

// ---- calls ----

/** While a call is under way the button stops it, also if the form is no longer valid. */
function stopInstead(event) {
  if (!running) return;
  event.preventDefault();
  stop();
}

function stop() {
  running?.controller.abort();
  running = null;
}

async function start() {
  stop();
  const { tool } = state;
  const model = modelOf(tool);
  const values = valuesOf(tool, model);
  const mine = (running = { tool, controller: new AbortController() });
  const outcome = { values, model, answer: null, error: null };
  const begun = performance.now();
  state.outcomes[tool.id] = outcome;
  showOutcome();
  setTimeout(() => running === mine && ($("status").textContent = t("running_long")), SLOW);
  const progress = (answer) => {
    outcome.answer = answer;
    if (running === mine) showResult(outcome);
  };
  try {
    outcome.answer = await tool.run(values, model, { signal: mine.controller.signal, progress });
  } catch (error) {
    outcome.error =
      error instanceof CallError ? error : new CallError("page", t("error_page", { message: error.message }));
    if (outcome.error.kind === "token") showTokenForm();
  }
  outcome.seconds = ((performance.now() - begun) / 1000).toFixed(2);
  if (running === mine) running = null;
  if (state.tool === tool && running === null) showOutcome();
}

function showOutcome() {
  const outcome = state.outcomes[state.tool.id];
  const busy = running !== null && running.tool === state.tool;
  $("run").textContent = busy ? t("stop") : t("run");
  $("run").classList.toggle("stop", busy);
  $("result").setAttribute("aria-busy", String(busy));
  $("status").textContent = busy ? t("running") : outcome?.seconds && !outcome.error ? t("done", outcome) : "";
  showResult(outcome);
}

function showResult(outcome) {
  const error = outcome?.error;
  const parts = [];
  if (error) {
    const again = error.kind !== "input" && error.kind !== "token" && error.kind !== "stopped";
    parts.push(
      h(
        "div",
        { class: error.kind === "stopped" ? "notice" : "error", role: "alert" },
        h("p", {}, error.message),
        again && h("button", { type: "button", on: { click: start } }, t("retry")),
      ),
    );
  }
  if (outcome?.answer) {
    try {
      parts.push(state.tool.show(outcome.answer, outcome.values, outcome.model));
    } catch (failure) {
      // an answer of another shape than the one that is documented
      parts.push(
        h("div", { class: "error", role: "alert" }, h("p", {}, t("error_page", { message: failure.message }))),
      );
    }
  }
  if (!parts.length)
    parts.push(
      running ? h("div", { class: "waiting" }, h("i"), h("i"), h("i")) : h("p", { class: "empty" }, t("empty")),
    );
  // A text that streams grows in place: to insert it again would take the focus from its tokens.
  if (parts.length !== 1 || $("result").firstChild !== parts[0]) $("result").replaceChildren(...parts);
}

// ---- code ----

function showCode() {
  const model = modelOf(state.tool);
  codeOf(state.tool.request(valuesOf(state.tool, model), model));
}

// ---- start ----

startSettings(render);
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("panel").focus();
});
addEventListener("hashchange", () => {
  const before = state.tool;
  readAddress();
  if (before !== state.tool) stop();
  render();
});
showStrings();
loadModels();
