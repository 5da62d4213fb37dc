/** Texts with marked parts, and saliency: how much each token adds to a label. */

import { call } from "./api.js";
import { clamp, field, h, select, visible } from "./dom.js";
import { t } from "./strings.js";

/**
 * A text cut at spans {start, end} in characters (code points), each span turned into an element by `mark`. A span that
 * overlaps an earlier one stays plain text.
 */
export function pieces(text, spans, mark) {
  const letters = Array.from(text); // the server counts characters, a string of JavaScript UTF-16 units
  const parts = [];
  let end = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < end) continue;
    parts.push(letters.slice(end, span.start).join(""), mark(span, letters.slice(span.start, span.end).join("")));
    end = span.end;
  }
  return [...parts, letters.slice(end).join("")];
}

export const saliencyOf = async (inputs, model, label, signal) =>
  (await call("inspect/saliency", { model: model.id, inputs, ...(label && { label }) }, signal)).results[0];

/** The tokens with their scores; another label can be chosen. */
export function showSaliency(saliency, inputs, model, labels) {
  const box = h("div");
  const draw = (item) => {
    const largest = Math.max(...item.tokens.map((token) => Math.abs(token.score))) || 1;
    const chips = item.tokens.map((token) =>
      h(
        "span",
        {
          class: token.score < 0 ? "chip against" : "chip for",
          css: { "--p": `${100 * clamp(Math.abs(token.score) / largest)}%` },
        },
        visible(token.token),
        h("small", {}, signed(token.score)),
      ),
    );
    box.replaceChildren(
      h("p", { class: "note" }, t("saliency_about", { label: item.label })),
      h("p", { class: "strip" }, chips),
    );
  };
  let latest = saliency;
  const change = async (label) => {
    const mine = (latest = {});
    try {
      const item = await saliencyOf(inputs, model, label);
      if (latest === mine) draw(item);
    } catch (error) {
      if (latest === mine) box.replaceChildren(h("div", { class: "error", role: "alert" }, h("p", {}, error.message)));
    }
  };
  draw(saliency);
  return h(
    "div",
    { class: "more" },
    h("h4", {}, t("saliency")),
    field(
      t("saliency_label"),
      select(
        labels.map((label) => [label, label]),
        saliency.label,
        change,
      ),
    ),
    box,
  );
}

const signed = (score) => `${score < 0 ? "−" : "+"}${Math.abs(score).toPrecision(2)}`;
