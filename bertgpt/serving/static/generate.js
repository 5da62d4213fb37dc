/** Generation: the text streams in, token by token, with the alternatives of each. */

import { stream } from "./api.js";
import { area, bars, clamp, h, line, visible } from "./dom.js";
import { language, t } from "./strings.js";

const ALTERNATIVES = 5; // what OpenAI's completions allow at most

const number = (name, values, set, limits, note) =>
  line(name, t(name), values, set, note && t(note), { type: "number", ...limits });

const form = (values, set) => [
  area("prompt", t("prompt"), values, set, 4),
  h(
    "fieldset",
    {},
    h("legend", {}, t("settings")),
    h(
      "div",
      { class: "pairs" },
      number("max_tokens", values, set, { min: 1, max: 4096, required: true }),
      number("temperature", values, set, { min: 0, max: 2, step: 0.1, required: true }, "temperature_note"),
      number("top_p", values, set, { min: 0.01, max: 1, step: 0.01, required: true }),
      number("seed", values, set, { min: 0, max: 2 ** 31 - 1 }, "seed_note"),
      line("stop", t("stop_text"), values, set, t("stop_note")),
    ),
  ),
];

function request({ prompt, max_tokens, temperature, top_p, seed, stop }, model) {
  const body = {
    model: model.id,
    prompt,
    max_tokens: Number(max_tokens),
    temperature: Number(temperature),
    top_p: Number(top_p),
    ...(seed !== "" && { seed: Number(seed) }),
    ...(stop && { stop }),
    logprobs: ALTERNATIVES,
    stream: true,
  };
  return { path: "v1/completions", body, client: "completions.create" };
}

async function run(values, model, { signal, progress }) {
  const answer = { tokens: [], count: 0, finish: null, stopped: false };
  signal.addEventListener("abort", () => {
    answer.stopped = true;
  });
  progress(answer);
  for await (const piece of stream("v1/completions", request(values, model).body, signal)) {
    const [choice] = piece.choices;
    if (!choice) continue; // the usage
    answer.tokens.push(...tokensOf(choice));
    answer.count += choice.logprobs?.tokens.length ?? 0;
    answer.finish = choice.finish_reason ?? answer.finish;
    progress(answer);
  }
  return answer;
}

/**
 * Parts of a text with their tokens, from an event of the stream. A part is a token, or all tokens of the event where
 * their texts are not in its text: tokens may be parts of a character, and what may begin a stop string comes later.
 */
function tokensOf({ text, logprobs }) {
  const names = logprobs?.tokens ?? [];
  const tokens = names.map((name, i) => ranked(name, logprobs.token_logprobs[i], logprobs.top_logprobs?.[i] ?? {}));
  const parts = [];
  let end = 0;
  for (const [i, name] of names.entries()) {
    const start = text.indexOf(name, end);
    if (start < 0 || text.slice(end, start).trim()) return [{ text, tokens }].filter((part) => part.text);
    parts.push({ text: text.slice(end, start + name.length), tokens: [tokens[i]] });
    end = start + name.length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), tokens: [] });
  return parts.filter((part) => part.text); // an end token has no text
}

/** A token among its alternatives, which may name it otherwise: without its space, say. */
function ranked(name, logprob, top) {
  const rows = Object.entries(top).map(([token, value]) => ({ token, value, own: Math.abs(value - logprob) < 1e-6 }));
  if (!rows.some((row) => row.own)) rows.push({ token: name, value: logprob, own: true });
  return { logprob, rows: rows.sort((a, b) => b.value - a.value) };
}

/** The answer as an element. It grows while the text streams in, so that the focus stays where it is. */
function show(answer, values) {
  if (answer.element?.dataset.language !== language()) {
    const list = h("span");
    const detail = h("div", { class: "detail", "aria-live": "polite" }, h("p", { class: "note" }, t("hint_tokens")));
    const summary = h("p", { class: "note" });
    Object.assign(answer, { list, detail, summary, shown: 0 });
    answer.element = h(
      "div",
      { "data-language": language() },
      h("p", { class: "quote generated" }, h("span", { class: "prompt" }, values.prompt), list),
      summary,
      detail,
    );
    listen(answer);
  }
  if (answer.tokens.length) {
    // a listbox without options would be an error
    for (const [name, value] of [
      ["role", "listbox"],
      ["aria-label", t("result")],
      ["aria-orientation", "horizontal"],
    ])
      answer.list.setAttribute(name, value);
  }
  for (const token of answer.tokens.slice(answer.shown)) {
    const own = token.tokens[0];
    answer.list.append(
      h(
        "span",
        {
          role: "option",
          "aria-selected": "false",
          tabindex: answer.list.childNodes.length ? "-1" : "0",
          "aria-label": visible(token.text),
          css: { "--p": `${own ? 100 * clamp(1 - Math.exp(own.logprob)) : 0}%` },
        },
        token.text,
      ),
    );
  }
  answer.shown = answer.tokens.length;
  const key = answer.finish
    ? answer.finish === "length"
      ? "finish_length"
      : "finish_stop"
    : answer.stopped
      ? "finish_cut"
      : null;
  answer.summary.textContent = key ? t(key, { count: answer.count }) : "";
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
    detail.replaceChildren(
      h("h4", {}, title),
      ...tokens[index].tokens.map(({ rows }) =>
        bars(
          rows.map(({ token, value, own }) => ({ label: visible(token) + (own ? " ✓" : ""), value: Math.exp(value) })),
          title,
        ),
      ),
    );
  };
  list.addEventListener("pointerover", (event) => pick(event.target));
  list.addEventListener("focusin", (event) => pick(event.target));
  list.addEventListener("keydown", (event) => {
    const options = [...list.children];
    const here = options.indexOf(event.target);
    const next = {
      ArrowRight: here + 1,
      ArrowDown: here + 1,
      ArrowLeft: here - 1,
      ArrowUp: here - 1,
      Home: 0,
      End: options.length - 1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    options[next]?.focus();
  });
}

export const generate = {
  id: "generate",
  needs: ["generate"],
  defaults: ({ max_len }) => ({
    prompt: "",
    max_tokens: Math.min(40, Math.floor(max_len / 2)),
    temperature: 0.8,
    top_p: 1,
    seed: "",
    stop: "",
  }),
  form,
  request,
  run,
  show,
};
