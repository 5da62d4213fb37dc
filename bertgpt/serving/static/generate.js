/** Generation: the text streams in, token by token, with the alternatives of each. */

import { stream } from "./api.js";
import { bars, clamp, field, h, visible } from "./dom.js";
import { language, t } from "./strings.js";

const ALTERNATIVES = 5; // what OpenAI's completions allow at most

const number = (name, label, values, set, limits, note) => field(label, h("input", {
  type: "number", value: values[name], ...limits, on: { input: (event) => set(name, event.target.value) },
}), note);

function form(values, set) {
  const prompt = h("textarea", { rows: 4, value: values.prompt, spellcheck: "false", on: { input: (event) => set("prompt", event.target.value) } });
  const stop = h("input", { type: "text", autocomplete: "off", value: values.stop, on: { input: (event) => set("stop", event.target.value) } });
  return [field(t("prompt"), prompt), h("fieldset", {}, h("legend", {}, t("settings")), h("div", { class: "pairs" },
    number("max_tokens", t("max_tokens"), values, set, { min: 1, max: 4096, required: true }),
    number("temperature", t("temperature"), values, set, { min: 0, max: 2, step: 0.1, required: true }, t("temperature_note")),
    number("top_p", t("top_p"), values, set, { min: 0.01, max: 1, step: 0.01, required: true }),
    number("seed", t("seed"), values, set, { min: 0, max: 2 ** 31 - 1 }, t("seed_note")),
    field(t("stop_text"), stop, t("stop_note"))))];
}

function request({ prompt, max_tokens, temperature, top_p, seed, stop }, model) {
  const body = {
    model: model.id, prompt, max_tokens: Number(max_tokens), temperature: Number(temperature), top_p: Number(top_p),
    ...(seed !== "" && { seed: Number(seed) }), ...(stop && { stop }), logprobs: ALTERNATIVES, stream: true,
  };
  return { path: "v1/completions", body, client: "completions.create" };
}

async function run(values, model, { signal, progress }) {
  const answer = { tokens: [], finish: null, stopped: false };
  signal.addEventListener("abort", () => { answer.stopped = true; });
  progress(answer);
  for await (const piece of stream("v1/completions", request(values, model).body, signal)) {
    const [choice] = piece.choices;
    if (!choice) continue; // the usage
    answer.tokens.push(...tokensOf(choice));
    answer.finish = choice.finish_reason ?? answer.finish;
    progress(answer);
  }
  return answer;
}

/** Tokens {text, alternatives} of a piece. Its text counts: a token may be part of a character. */
function tokensOf({ text, logprobs }) {
  const names = logprobs?.tokens ?? [];
  const tops = names.map((name, i) => logprobs.top_logprobs?.[i] ?? { [name]: logprobs.token_logprobs[i] });
  const own = names.map((name, i) => ({ name, logprob: logprobs.token_logprobs[i], top: tops[i] }));
  if (names.join("") === text) return own.map((token) => ({ text: token.name, alternatives: [token] }));
  return text || own.length ? [{ text, alternatives: own }] : [];
}

/** The answer as an element. It grows while the text streams in, so that the focus stays where it is. */
function show(answer, values) {
  if (answer.element?.dataset.language !== language()) {
    const list = h("span", { role: "listbox", "aria-label": t("result"), "aria-orientation": "horizontal" });
    const detail = h("div", { class: "detail", "aria-live": "polite" }, h("p", { class: "note" }, t("hint_tokens")));
    const summary = h("p", { class: "note" });
    Object.assign(answer, { list, detail, summary, shown: 0 });
    answer.element = h("div", { "data-language": language() },
      h("p", { class: "quote generated" }, h("span", { class: "prompt" }, values.prompt), list), summary, detail);
    listen(answer);
  }
  for (const token of answer.tokens.slice(answer.shown)) {
    const own = token.alternatives[0];
    answer.list.append(h("span", {
      role: "option", "aria-selected": "false", tabindex: answer.list.childNodes.length ? "-1" : "0", "aria-label": visible(token.text),
      css: { "--p": `${own ? 100 * clamp(1 - Math.exp(own.logprob)) : 0}%` },
    }, token.text));
  }
  answer.shown = answer.tokens.length;
  const key = answer.finish ? (answer.finish === "length" ? "finish_length" : "finish_stop") : answer.stopped ? "finish_cut" : null;
  answer.summary.textContent = key ? t(key, { count: answer.shown }) : "";
  return answer.element;
}

function listen({ list, detail, tokens }) {
  const pick = (option) => {
    const index = [...list.children].indexOf(option);
    if (index < 0) return;
    for (const other of list.children) {
      other.tabIndex = other === option ? 0 : -1;
      other.setAttribute("aria-selected", String(other === option));
    }
    const title = t("alternatives", { number: index + 1 });
    detail.replaceChildren(h("h4", {}, title), ...tokens[index].alternatives.map(({ name, top }) =>
      bars(Object.entries(top).sort((a, b) => b[1] - a[1]).map(([token, logprob]) => (
        { label: visible(token) + (token === name ? " ✓" : ""), value: Math.exp(logprob) })), title)));
  };
  list.addEventListener("pointerover", (event) => pick(event.target));
  list.addEventListener("focusin", (event) => pick(event.target));
  list.addEventListener("keydown", (event) => {
    const options = [...list.children];
    const here = options.indexOf(event.target);
    const next = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: options.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    options[next]?.focus();
  });
}

export const generate = {
  id: "generate",
  needs: ["generate"],
  defaults: () => ({ prompt: "", max_tokens: 40, temperature: 0.8, top_p: 1, seed: "", stop: "" }),
  examples: () => ({
    en: [
      { title: "a film", values: { prompt: "This film is" } },
      { title: "a story", values: { prompt: "Once upon a time, there was" } },
      { title: "greedy", values: { prompt: "The best thing about", temperature: 0 } },
    ],
    zh: [{ title: "一个故事", values: { prompt: "从前，山里有一座" } }],
  }),
  form,
  request,
  run,
  show,
};
