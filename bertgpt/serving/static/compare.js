/** Tools that compare texts: similarity of all pairs, and documents with a query. */

import { CallError, call } from "./api.js";
import { area, bars, clamp, h, heatMap, line } from "./dom.js";
import { t } from "./strings.js";

const lines = (text) =>
  text
    .split("\n")
    .map((part) => part.trim())
    .filter(Boolean);

// ---- similarity ----

export const similarity = {
  id: "similarity",
  needs: ["embed"],
  avoids: ["fill_mask", "classify", "tag", "qa"], // encoders of another task: their vectors compare badly
  defaults: () => ({ sentences: "" }),
  form: (values, set) => area("sentences", t("sentences"), values, set, 7),
  request: ({ sentences }, model) => ({
    path: "v1/embeddings",
    body: { model: model.id, input: lines(sentences) },
    client: "embeddings.create",
  }),
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
      cell: (r, c) => ({ text: short(cosines[r][c]), p: cosines[r][c] }),
      onActive: (r, c) =>
        detail.replaceChildren(
          h("p", { class: "figure" }, cosines[r][c].toFixed(3)),
          h("p", {}, `${r + 1} ${texts[r]}`),
          h("p", {}, `${c + 1} ${texts[c]}`),
        ),
      start: [a, b],
      kind: "wide",
    });
    return h(
      "div",
      {},
      h("p", {}, t("most_similar", { a: a + 1, b: b + 1, value: cosines[a][b].toFixed(3) })),
      map,
      detail,
    );
  },
};

/** Two digits, and no zero with a minus. */
const short = (cosine) =>
  cosine
    .toFixed(2)
    .replace(/^-(?=0\.00$)/, "")
    .replace("-", "−");

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

// ---- reranking ----

export const rerank = {
  id: "rerank",
  needs: ["rerank"],
  defaults: () => ({ query: "", documents: "" }),
  form: (values, set) => [line("query", t("query"), values, set), area("documents", t("documents"), values, set, 6)],
  request: ({ query, documents }, model) => ({
    path: "v1/rerank",
    body: { model: model.id, query, documents: lines(documents) },
  }),
  async run(values, model, { signal }) {
    const { body } = this.request(values, model);
    return { documents: body.documents, results: (await call("v1/rerank", body, signal)).results };
  },
  show({ documents, results }) {
    const scores = results.map((item) => item.relevance_score);
    const [low, high] = [Math.min(0, ...scores), Math.max(1, ...scores)];
    const ordered = [...results].sort((a, b) => b.relevance_score - a.relevance_score);
    return h(
      "ol",
      { class: "ranked" },
      ordered.map((item) =>
        h(
          "li",
          {},
          h("p", {}, documents[item.index]),
          bars([
            {
              label: t("score"),
              value: clamp((item.relevance_score - low) / (high - low)),
              text: item.relevance_score.toFixed(3),
              code: false,
            },
          ]),
        ),
      ),
    );
  },
};
