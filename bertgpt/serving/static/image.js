/** The tool for models that read images: captions, answers, classes. */

import { CallError, call } from "./api.js";
import { bars, h, line } from "./dom.js";
import { pictureField } from "./picture.js";
import { t } from "./strings.js";

const MOST = 10; // bars
const split = (text) =>
  text
    .split(/[,，]/)
    .map((label) => label.trim())
    .filter(Boolean);

export const image = {
  id: "image",
  needs: ["vqa", "caption", "classify_image", "zero_shot_image"],
  defaults: () => ({ picture: null, question: "", labels: "circle, square, triangle" }),
  form(values, set, { capabilities }) {
    const only = capabilities.filter((word) => this.needs.includes(word)).length === 1;
    return [
      pictureField(values, set),
      capabilities.includes("vqa") &&
        line("question", t("question_image"), values, set, only ? null : t("question_note"), { required: only }),
      capabilities.includes("zero_shot_image") &&
        line("labels", t("labels"), values, set, t("labels_image_note"), { required: only }),
    ];
  },
  request({ picture, question, labels }, { id, capabilities }) {
    const can = (word) => capabilities.includes(word);
    const [model, uri, file] = [id, picture?.uri ?? "", picture];
    const inputs = { model, inputs: uri };
    if (can("zero_shot_image") && (split(labels).length || capabilities.length === 1))
      return { path: "zero-shot-image", body: { ...inputs, labels: split(labels) }, file };
    if (can("vqa") && (question.trim() || !can("caption")))
      return { path: "vqa", body: { model, image: uri, question }, file };
    return { path: can("caption") ? "caption" : "classify-image", body: inputs, file };
  },
  async run(values, model, { signal }) {
    if (!values.picture) throw new CallError("input", t("picture_missing"));
    const { path, body } = this.request(values, model);
    return (await call(path, body, signal)).results[0];
  },
  show(found, { picture }) {
    const text = found.text ?? found.answer ?? found.labels?.join(t("comma")) ?? found.label ?? found.value?.toFixed(3);
    if (text === undefined || text === null)
      return h("div", { class: "error", role: "alert" }, h("p", {}, t("not_finite")));
    const all = Object.entries(found.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
    return h(
      "div",
      {},
      h("img", { class: "preview", src: picture.uri, alt: t("picture_alt", picture) }),
      h("p", { class: found.text === undefined ? "verdict" : "quote" }, text || t("empty_text")),
      all.length > 0 &&
        bars(
          all.slice(0, MOST).map(([label, value]) => ({ label, value, code: false })),
          t("image"),
        ),
      all.length > MOST && h("p", { class: "note" }, t("more_labels", { count: all.length - MOST })),
    );
  },
};
