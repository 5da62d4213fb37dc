/**
 * The tools. Each has:
 *   id: its key in strings.js · needs: words, one of which the model's capabilities must hold
 *   avoids: capabilities of models that are listed last · broad: whether the result needs the whole width
 *   defaults(model): values of its form, in which examples.js fills · form(values, set, model): the form's fields
 *   request(values, model): {path, body, client} of its (first) call, which is shown as code
 *   run(values, model, {signal, progress}): makes the calls · show(answer, values, model): the answer as an element
 */

import { CallError, call } from "./api.js";
import { similarity, rerank } from "./compare.js";
import { area, bars, h, line, table, visible } from "./dom.js";
import { generate } from "./generate.js";
import { image } from "./image.js";
import { attention, lens } from "./inspect.js";
import { pieces, saliencyOf, showSaliency } from "./saliency.js";
import { t } from "./strings.js";

const one = (name) => (values, set) => area(name, t("text"), values, set, 5);

/** A tool whose only input is a text, sent as `inputs`. */
const ofText = (id, needs, path, rest) => ({
  id,
  needs,
  defaults: () => ({ inputs: "" }),
  form: one("inputs"),
  request: (values, model) => ({ path, body: { model: model.id, inputs: values.inputs } }),
  async run(values, model, { signal }) {
    const { body } = this.request(values, model);
    return (await call(path, body, signal)).results[0];
  },
  ...rest,
});

/** What stands in place of a result whose numbers are NaN or infinite, which the server sends as null. */
const notFinite = () => h("div", { class: "error", role: "alert" }, h("p", {}, t("not_finite")));

// ---- fill-mask ----

const fillMask = ofText("fill_mask", ["fill_mask"], "fill-mask", {
  defaults: () => ({ inputs: "", top_k: 5 }),
  form(values, set, { mask }) {
    const control = area("inputs", t("text"), values, set, 3);
    const box = control.querySelector("textarea");
    const insert = () => {
      box.setRangeText(mask, box.selectionStart, box.selectionEnd, "end");
      set("inputs", box.value);
      box.focus();
    };
    return [
      control,
      h("button", { type: "button", class: "small", on: { click: insert } }, t("insert_mask", { mask })),
      line("top_k", t("top_k"), values, set, null, { type: "number", min: 1, max: 50, required: true }),
    ];
  },
  request: ({ inputs, top_k }, model) => ({
    path: "fill-mask",
    body: { model: model.id, inputs, top_k: Number(top_k) },
  }),
  show(masks, values, { mask }) {
    if (!masks.length) return h("p", { class: "empty" }, t("no_mask", { mask }));
    const parts = [];
    let end = 0;
    const letters = Array.from(values.inputs); // the server counts characters, a string of JavaScript UTF-16 units
    for (const item of masks) {
      parts.push(letters.slice(end, item.start).join(""), h("strong", {}, shown(item.tokens[0])));
      end = item.end;
    }
    return h(
      "div",
      {},
      h("p", { class: "quote" }, parts, letters.slice(end).join("")),
      masks.map((item, index) => {
        const title = t("mask_number", { number: index + 1 });
        return h(
          "div",
          {},
          masks.length > 1 && h("h4", {}, title),
          bars(
            item.tokens.map((token) => ({ label: visible(token.token), value: token.probability })),
            title,
          ),
        );
      }),
    );
  },
});

const shown = (token) => (token.text ?? token.token).trim() || visible(token.token);

// ---- classification ----

const wanted = (values, model) =>
  model.capabilities.includes("zero_shot")
    ? values.labels
        .split(/[,，]/)
        .map((label) => label.trim())
        .filter(Boolean)
    : [];

const classify = ofText("classify", ["classify", "zero_shot"], "classify", {
  defaults: (model) => ({ inputs: "", labels: model.capabilities.includes("classify") ? "" : "positive, negative" }),
  form: (values, set, model) => [
    one("inputs")(values, set),
    model.capabilities.includes("zero_shot") &&
      line("labels", t("labels"), values, set, t("labels_note"), {
        required: !model.capabilities.includes("classify"),
      }),
  ],
  request(values, model) {
    const labels = wanted(values, model);
    return { path: "classify", body: { model: model.id, inputs: values.inputs, ...(labels.length && { labels }) } };
  },
  async run(values, model, { signal, progress }) {
    const { body } = this.request(values, model);
    const [decision] = (await call("classify", body, signal)).results;
    const explains = model.capabilities.includes("saliency") && !body.labels && decision.probabilities;
    if (!explains) return { decision };
    progress({ decision });
    return { decision, saliency: await saliencyOf(values.inputs, model, undefined, signal) };
  },
  show({ decision, saliency }, values, model) {
    if (decision.value !== undefined && decision.value !== null)
      return h("p", { class: "verdict" }, `${t("value")}: ${decision.value.toFixed(3)}`);
    if (!decision.probabilities) return notFinite();
    const all = Object.entries(decision.probabilities).sort((a, b) => b[1] - a[1]);
    const verdict = decision.labels ? decision.labels.join(t("comma")) || "∅" : decision.label;
    return h(
      "div",
      {},
      h("p", { class: "verdict" }, verdict),
      bars(
        all.map(([label, value]) => ({ label, value, code: false })),
        t("classify"),
      ),
      saliency &&
        showSaliency(
          saliency,
          values.inputs,
          model,
          all.map(([label]) => label),
        ),
    );
  },
});

// ---- entities ----

const ner = ofText("ner", ["tag"], "ner", {
  show({ entities }, values) {
    if (!entities) return notFinite();
    if (!entities.length) return h("p", { class: "empty" }, t("no_entities"));
    const labels = [...new Set(entities.map((entity) => entity.label))];
    const scored = entities.some((entity) => entity.score !== undefined);
    const marked = pieces(values.inputs, entities, (entity, part) =>
      h("mark", { class: `tint${labels.indexOf(entity.label) % 6}` }, part, h("small", {}, entity.label)),
    );
    const heads = [t("span"), t("label"), t("characters"), scored && t("score")].filter(Boolean);
    return h(
      "div",
      {},
      h("p", { class: "quote marked" }, marked),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": t("ner") },
        table(
          heads,
          entities.map((entity) => [
            h("td", {}, entity.text),
            h("td", {}, entity.label),
            h("td", { class: "number" }, `${entity.start}–${entity.end}`),
            scored && h("td", { class: "number" }, entity.score?.toFixed(3)),
          ]),
        ),
      ),
    );
  },
});

// ---- question answering ----

const qa = {
  id: "qa",
  needs: ["qa"],
  defaults: () => ({ question: "", context: "" }),
  form: (values, set) => [line("question", t("question"), values, set), area("context", t("passage"), values, set, 7)],
  request: ({ question, context }, model) => ({ path: "qa", body: { model: model.id, question, context } }),
  async run(values, model, { signal }) {
    return (await call("qa", this.request(values, model).body, signal)).results[0];
  },
  show(found, { context }) {
    if (found.answer === null) return notFinite();
    if (!found.answer) return h("p", { class: "empty" }, t("no_answer"));
    const marked = pieces(context, [found], (_, part) => h("mark", { class: "tint0" }, part));
    const score = typeof found.score === "number" && ` (${t("score")} ${found.score.toFixed(3)})`;
    return h(
      "div",
      {},
      h("p", { class: "verdict" }, found.answer, score && h("small", {}, score)),
      h("p", { class: "quote" }, marked),
    );
  },
};

// ---- texts from texts ----

const rewrite = (id, rest) =>
  ofText(id, [id], id, { ...rest, show: (answer) => h("p", { class: "quote" }, answer.text) });

/** Names of the languages, for models that were trained on several pairs. */
const languages = {
  defaults: () => ({ inputs: "", source: "", target: "" }),
  form: (values, set) => [
    one("inputs")(values, set),
    h(
      "div",
      { class: "pairs" },
      line("source", t("source"), values, set, t("languages_note")),
      line("target", t("target"), values, set),
    ),
  ],
  request: ({ inputs, source, target }, model) => ({
    path: "translate",
    body: { model: model.id, inputs, ...(source && { source }), ...(target && { target }) },
  }),
};

// ---- tokenizer ----

const tokenize = ofText("tokenize", ["tokenize"], "tokenize", {
  async run(values, model, { signal }) {
    return (await call("tokenize", this.request(values, model).body, signal))[0];
  },
  show(tokens) {
    const heads = ["#", t("token"), t("id"), t("characters")];
    const special = tokens.filter((token) => token.special).length;
    return h(
      "div",
      {},
      h("p", {}, t("token_count", { count: tokens.length, special })),
      h(
        "p",
        { class: "strip" },
        tokens.map((token, index) =>
          h(
            "span",
            { class: token.special ? "chip special" : `chip tint${index % 3}` },
            visible(token.text),
            h("small", {}, token.id),
          ),
        ),
      ),
      h(
        "div",
        { class: "scroll tall", tabindex: "0", role: "region", "aria-label": t("tokenize") },
        table(
          heads,
          tokens.map((token, index) => [
            h("td", { class: "number" }, index + 1),
            h("td", { class: "code" }, visible(token.text)),
            h("td", { class: "number" }, token.id),
            h("td", { class: "number" }, token.start === null ? "–" : `${token.start}–${token.stop}`),
          ]),
        ),
      ),
    );
  },
});

export const TOOLS = [
  fillMask,
  classify,
  ner,
  qa,
  generate,
  rewrite("summarize"),
  rewrite("translate", languages),
  similarity,
  rerank,
  image,
  lens,
  attention,
  tokenize,
];
