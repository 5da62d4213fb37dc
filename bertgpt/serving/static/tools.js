/**
 * The tools. Each has:
 *   id: its key in strings.js · needs: words, one of which the model's capabilities must hold
 *   defaults(model), examples(model): values of its form · form(values, set, model): the form's fields
 *   request(values, model): {path, body, client} of its (first) call, which is shown as code
 *   run(values, model, {signal, progress}): makes the calls · show(answer, values, model): the answer as an element
 */

import { CallError, call } from "./api.js";
import { bars, clamp, field, h, heatMap, visible } from "./dom.js";
import { generate } from "./generate.js";
import { attention, lens } from "./inspect.js";
import { pieces, saliencyOf, showSaliency } from "./saliency.js";
import { t } from "./strings.js";

const area = (name, label, values, set, rows = 3) =>
  field(label, h("textarea", { rows, value: values[name], spellcheck: "false", on: { input: (event) => set(name, event.target.value) } }));

export const line = (name, label, values, set, note, more = {}) =>
  field(label, h("input", { type: "text", autocomplete: "off", value: values[name], on: { input: (event) => set(name, event.target.value) }, ...more }), note);

const lines = (text) => text.split("\n").map((part) => part.trim()).filter(Boolean);

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

const text = (title, inputs) => ({ title, values: { inputs } });

// ---- fill-mask ----

const fillMask = ofText("fill_mask", ["fill_mask"], "fill-mask", {
  defaults: () => ({ inputs: "", top_k: 5 }),
  examples: ({ mask }) => ({
    en: [text("a film review", `This film is ${mask} and the story is very ${mask}.`), text("a capital", `The capital of France is ${mask}.`)],
    zh: [text("一句中文", `今天天气很${mask}，我们去公园玩。`)],
  }),
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
  request: ({ inputs, top_k }, model) => ({ path: "fill-mask", body: { model: model.id, inputs, top_k: Number(top_k) } }),
  show(masks, values, { mask }) {
    if (!masks.length) return h("p", { class: "empty" }, t("no_mask", { mask }));
    const parts = [];
    let end = 0;
    const letters = Array.from(values.inputs); // the server counts characters, a string of JavaScript UTF-16 units
    for (const item of masks) {
      parts.push(letters.slice(end, item.start).join(""), h("strong", {}, shown(item.tokens[0])));
      end = item.end;
    }
    return h("div", {}, h("p", { class: "quote" }, parts, letters.slice(end).join("")), masks.map((item, index) => {
      const title = t("mask_number", { number: index + 1 });
      return h("div", {}, masks.length > 1 && h("h4", {}, title), bars(item.tokens.map((token) => ({ label: visible(token.token), value: token.probability })), title));
    }));
  },
});

const shown = (token) => (token.text ?? token.token).trim() || visible(token.token);

// ---- classification ----

const wanted = (values, model) => (model.capabilities.includes("zero_shot") ? values.labels.split(/[,，]/).map((label) => label.trim()).filter(Boolean) : []);

const classify = ofText("classify", ["classify", "zero_shot"], "classify", {
  defaults: (model) => ({ inputs: "", labels: model.capabilities.includes("classify") ? "" : "positive, negative" }),
  examples: () => ({
    en: [
      text("praise", "A warm, funny and beautifully acted film that never loses its way."),
      text("blame", "The plot is thin, the jokes are stale, and it goes on for far too long."),
      text("both", "The actors are wonderful, but the story is dull and predictable."),
    ],
    zh: [text("一句中文", "演员很出色，但是故事又长又无聊。")],
  }),
  form: (values, set, model) => [
    one("inputs")(values, set),
    model.capabilities.includes("zero_shot") && line("labels", t("labels"), values, set, t("labels_note"), { required: !model.capabilities.includes("classify") }),
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
    if (decision.value !== undefined) return h("p", { class: "verdict" }, `${t("value")}: ${decision.value.toFixed(3)}`);
    const all = Object.entries(decision.probabilities).sort((a, b) => b[1] - a[1]);
    const verdict = decision.labels ? decision.labels.join(t("comma")) || "∅" : decision.label;
    return h("div", {}, h("p", { class: "verdict" }, verdict),
      bars(all.map(([label, value]) => ({ label, value, code: false })), t("classify")),
      saliency && showSaliency(saliency, values.inputs, model, all.map(([label]) => label)));
  },
});

// ---- entities ----

const ner = ofText("ner", ["tag"], "ner", {
  examples: () => ({
    en: [
      text("people and places", "Marie Curie was born in Warsaw and worked at the University of Paris."),
      text("companies", "Tim Cook said on Monday that Apple will open a new office in Munich."),
    ],
    zh: [text("一句中文", "钱学森出生在上海，后来在北京的中国科学院工作。")],
  }),
  show({ entities }, values) {
    if (!entities.length) return h("p", { class: "empty" }, t("no_entities"));
    const labels = [...new Set(entities.map((entity) => entity.label))];
    const scored = entities.some((entity) => entity.score !== undefined);
    const marked = pieces(values.inputs, entities, (entity, part) =>
      h("mark", { class: `tint${labels.indexOf(entity.label) % 6}` }, part, h("small", {}, entity.label)));
    const heads = [t("span"), t("label"), t("characters"), scored && t("score")].filter(Boolean);
    return h("div", {}, h("p", { class: "quote marked" }, marked), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("ner") },
      h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, entities.map((entity) => h("tr", {}, h("td", {}, entity.text), h("td", {}, entity.label),
          h("td", { class: "number" }, `${entity.start}–${entity.end}`), scored && h("td", { class: "number" }, entity.score?.toFixed(3))))))));
  },
});

// ---- question answering ----

const LIGHTHOUSE = "The lighthouse of Alexandria was built in the third century BC on the island of Pharos. It was about 100 metres tall, and its fire could be seen from far out at sea. Earthquakes destroyed it in the fourteenth century.";

const qa = {
  id: "qa",
  needs: ["qa"],
  defaults: () => ({ question: "", context: "" }),
  examples: () => ({
    en: [
      { title: "where?", values: { question: "Where was the lighthouse built?", context: LIGHTHOUSE } },
      { title: "what destroyed it?", values: { question: "What destroyed the lighthouse?", context: LIGHTHOUSE } },
    ],
    zh: [{ title: "一个中文问题", values: { question: "长江有多长？", context: "长江发源于青藏高原，全长约6300公里，是亚洲第一长河，在上海附近流入东海。" } }],
  }),
  form: (values, set) => [line("question", t("question"), values, set), area("context", t("passage"), values, set, 7)],
  request: ({ question, context }, model) => ({ path: "qa", body: { model: model.id, question, context } }),
  async run(values, model, { signal }) {
    return (await call("qa", this.request(values, model).body, signal)).results[0];
  },
  show(found, { context }) {
    if (!found.answer) return h("p", { class: "empty" }, t("no_answer"));
    const marked = pieces(context, [found], (_, part) => h("mark", { class: "tint0" }, part));
    const score = typeof found.score === "number" && ` (${t("score")} ${found.score.toFixed(3)})`;
    return h("div", {}, h("p", { class: "verdict" }, found.answer, score && h("small", {}, score)), h("p", { class: "quote" }, marked));
  },
};

// ---- texts from texts ----

const NEWS = "The city council voted on Tuesday to close the old harbour bridge for six months. Engineers had found cracks in two of its pillars. Buses will take another route, and a ferry will carry cyclists and pedestrians free of charge.";
const rewrite = (id, examples) => ofText(id, [id], id, { examples, show: (answer) => h("p", { class: "quote" }, answer.text) });
const summarize = rewrite("summarize", () => ({
  en: [text("a news item", NEWS)],
  zh: [text("一则中文新闻", "市议会周二决定，将旧港大桥关闭六个月，因为工程师在两根桥墩上发现了裂缝。公交车将改道，行人可以免费乘坐渡轮。")],
}));
const translate = rewrite("translate", () => ({ en: [text("a sentence", "The house is small, but the garden is wonderful.")], zh: [text("一句中文", "房子很小，但是花园很漂亮。")] }));

// ---- similarity ----

const similarity = {
  id: "similarity",
  needs: ["embed"],
  defaults: () => ({ sentences: "" }),
  examples: () => ({
    en: [
      { title: "three topics", values: { sentences: "The cat sleeps on the sofa.\nA kitten is napping on the couch.\nThe stock market fell sharply today.\nShares lost value this morning.\nShe plays the violin in an orchestra." } },
      { title: "not quite the same", values: { sentences: "How do I reset my password?\nI forgot my login credentials.\nHow do I delete my account?\nWhat is your refund policy?" } },
    ],
    zh: [{ title: "几句中文", values: { sentences: "猫在沙发上睡觉。\n小猫正在沙发上打盹。\n今天股市大跌。\n股票今早下跌。" } }],
  }),
  form: (values, set) => area("sentences", t("sentences"), values, set, 7),
  request: ({ sentences }, model) => ({ path: "v1/embeddings", body: { model: model.id, input: lines(sentences) }, client: "embeddings.create" }),
  async run(values, model, { signal }) {
    const { body } = this.request(values, model);
    if (body.input.length < 2) throw new CallError("input", t("need_two"));
    const vectors = (await call("v1/embeddings", body, signal)).data.map((item) => item.embedding);
    const norm = (v) => Math.sqrt(dot(v, v)) || 1;
    return { texts: body.input, cosines: vectors.map((a) => vectors.map((b) => dot(a, b) / (norm(a) * norm(b)))) };
  },
  show({ texts, cosines }) {
    const pairs = texts.flatMap((_, a) => texts.slice(a + 1).map((_, k) => [a, a + 1 + k]));
    const [a, b] = pairs.reduce((best, pair) => (cosines[pair[0]][pair[1]] > cosines[best[0]][best[1]] ? pair : best));
    const detail = h("div", { class: "detail short", "aria-live": "polite" });
    const map = heatMap({
      caption: t("similarity_about"),
      corner: t("sentence"),
      rows: texts.map((sentence, index) => `${index + 1} ${sentence}`),
      columns: texts.map((_, index) => String(index + 1)),
      cell: (r, c) => ({ text: cosines[r][c].toFixed(2), p: cosines[r][c] }),
      onActive: (r, c) => detail.replaceChildren(h("p", { class: "figure" }, cosines[r][c].toFixed(3)), h("p", {}, `${r + 1} ${texts[r]}`), h("p", {}, `${c + 1} ${texts[c]}`)),
      start: [a, b],
      kind: "wide",
    });
    return h("div", {}, h("p", {}, t("most_similar", { a: a + 1, b: b + 1, value: cosines[a][b].toFixed(3) })), map, detail);
  },
};

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

// ---- reranking ----

const rerank = {
  id: "rerank",
  needs: ["rerank"],
  defaults: () => ({ query: "", documents: "" }),
  examples: () => ({
    en: [{ title: "a question", values: { query: "How do I bake bread?", documents: "Trains leave for the coast every hour.\nMix flour, water, salt and yeast, and knead the dough.\nThe oven should be at 230 °C before the loaf goes in.\nBread prices rose by three per cent." } }],
    zh: [{ title: "一个中文查询", values: { query: "怎么做面包？", documents: "火车每小时一班。\n把面粉、水、盐和酵母混合，然后揉面。\n面包价格上涨了。" } }],
  }),
  form: (values, set) => [line("query", t("query"), values, set), area("documents", t("documents"), values, set, 6)],
  request: ({ query, documents }, model) => ({ path: "v1/rerank", body: { model: model.id, query, documents: lines(documents) } }),
  async run(values, model, { signal }) {
    const { body } = this.request(values, model);
    return { documents: body.documents, results: (await call("v1/rerank", body, signal)).results };
  },
  show({ documents, results }) {
    const scores = results.map((item) => item.relevance_score);
    const [low, high] = [Math.min(0, ...scores), Math.max(1, ...scores)];
    const ordered = [...results].sort((a, b) => b.relevance_score - a.relevance_score);
    return h("ol", { class: "ranked" }, ordered.map((item) => h("li", {}, h("p", {}, documents[item.index]),
      bars([{ label: t("score"), value: clamp((item.relevance_score - low) / (high - low)), text: item.relevance_score.toFixed(3), code: false }]))));
  },
};

// ---- tokenizer ----

const tokenize = ofText("tokenize", ["tokenize"], "tokenize", {
  examples: () => ({
    en: [text("long words", "Tokenization splits unbelievably long words, e.g. antidisestablishmentarianism."), text("emoji and accents", "Café 🙂 naïve — 3.14159")],
    zh: [text("一句中文", "我爱自然语言处理，也爱 BERT。")],
  }),
  async run(values, model, { signal }) {
    return (await call("tokenize", this.request(values, model).body, signal))[0];
  },
  show(tokens) {
    const heads = ["#", t("token"), t("id"), t("characters")];
    const special = tokens.filter((token) => token.special).length;
    return h("div", {}, h("p", {}, t("token_count", { count: tokens.length, special })),
      h("p", { class: "strip" }, tokens.map((token, index) => h("span", { class: token.special ? "chip special" : `chip tint${index % 3}` }, visible(token.text), h("small", {}, token.id)))),
      h("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": t("tokenize") },
        h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
          h("tbody", {}, tokens.map((token, index) => h("tr", {}, h("td", { class: "number" }, index + 1), h("td", { class: "code" }, visible(token.text)),
            h("td", { class: "number" }, token.id), h("td", { class: "number" }, token.start === null ? "–" : `${token.start}–${token.stop}`)))))));
  },
});

export const TOOLS = [fillMask, classify, ner, qa, generate, summarize, translate, similarity, rerank, lens, attention, tokenize];
