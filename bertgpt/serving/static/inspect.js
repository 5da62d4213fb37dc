/** Inside the model: predictions after each layer, and attention weights. */

import { call } from "./api.js";
import { area, bars, clamp, field, h, heatMap, newId, percent, roving, select, visible } from "./dom.js";
import { t } from "./strings.js";

const textTool = (id, path, rest) => ({
  id,
  defaults: () => ({ inputs: "" }),
  form: (values, set) => area("inputs", t("text"), values, set),
  request: ({ inputs }, model) => ({ path, body: { model: model.id, inputs } }),
  async run(values, model, { signal }) {
    const answer = await call(path, this.request(values, model).body, signal);
    return answer.results ? answer.results[0] : answer;
  },
  ...rest,
});

const named = (tokens) => tokens.map((token) => visible(token.token));

// ---- logit lens ----

export const lens = textTool("lens", "inspect/lens", {
  broad: true,
  needs: ["lens"],
  show({ tokens, layers }, values, { mask }) {
    const names = named(tokens);
    const titles = layers.map((_, layer) => (layer ? t("layer_number", { number: layer }) : t("layer_zero")));
    const detail = h("div", { class: "detail", "aria-live": "polite" });
    const onActive = (r, c) => {
      const title = t("lens_cell", { layer: titles[r], position: c + 1, token: names[c] });
      detail.replaceChildren(
        h("h4", {}, title),
        bars(
          layers[r][c].map((item) => ({ label: visible(item.token), value: item.probability })),
          title,
        ),
      );
    };
    const masked = tokens.findIndex((token) => token.token === mask);
    const map = heatMap({
      caption: t("lens_about"),
      corner: t("layer"),
      rows: titles,
      columns: names,
      cell: (r, c) => ({ text: visible(layers[r][c][0].token), p: layers[r][c][0].probability }),
      onActive,
      start: [layers.length - 1, masked < 0 ? tokens.length - 1 : masked],
      kind: "words",
    });
    return h("div", {}, h("p", { class: "note" }, t("hint_cells")), map, detail);
  },
});

// ---- attention ----

const ROW = 28; // pixels, --row in style.css
const FAINT = 0.01; // weights below are not drawn

/** What is looked at; kept when the text or the language changes. */
const pick = { layer: 0, head: "mean", view: "lines" };

export const attention = textTool("attention", "inspect/attention", {
  needs: ["attention"],
  show({ tokens, attention: layers }) {
    pick.layer = Math.min(pick.layer, layers.length - 1);
    if (pick.head !== "mean" && Number(pick.head) >= layers[pick.layer].length) pick.head = "mean";
    const names = named(tokens);
    const picture = h("div");
    const draw = () => picture.replaceChildren(...(pick.view === "map" ? map : drawLines)(names, weightsOf(layers)));
    const change = (name) => (value) => {
      pick[name] = value;
      draw();
    };
    const views = [
      ["lines", t("view_lines")],
      ["map", t("view_map")],
    ].map(([view, name]) => {
      const id = newId();
      return [
        h("input", {
          type: "radio",
          name: "view",
          id,
          checked: pick.view === view,
          on: { change: () => change("view")(view) },
        }),
        h("label", { for: id }, name),
      ];
    });
    const layerOptions = layers.map((_, layer) => [String(layer), t("layer_number", { number: layer + 1 })]);
    const headOptions = [
      ["mean", t("head_mean")],
      ...layers[0].map((_, head) => [String(head), t("head_number", { number: head + 1 })]),
    ];
    draw();
    return h(
      "div",
      {},
      h(
        "div",
        { class: "pickers" },
        field(
          t("layer"),
          select(layerOptions, String(pick.layer), (value) => change("layer")(Number(value))),
        ),
        field(t("head"), select(headOptions, pick.head, change("head"))),
        h("div", { class: "choice", role: "group", "aria-label": t("view") }, views),
      ),
      picture,
    );
  },
});

/** The weights [from][to] of the layer and head that are chosen. */
function weightsOf(layers) {
  const heads = layers[pick.layer];
  if (pick.head !== "mean") return heads[Number(pick.head)];
  return heads[0].map((row, i) => row.map((_, j) => heads.reduce((sum, head) => sum + head[i][j], 0) / heads.length));
}

/** Tokens on the left attend to tokens on the right; the lines of the token under the pointer stand out. */
function drawLines(names, weights) {
  const height = names.length * ROW;
  const middle = (index) => (index + 0.5) * ROW;
  const groups = weights.map((row, from) =>
    h(
      "svg:g",
      {},
      row.map(
        (weight, to) =>
          weight >= FAINT &&
          h("svg:line", {
            // Width and opacity, so that a weight of 0.1 is still seen.
            x1: 0,
            x2: 100,
            y1: middle(from),
            y2: middle(to),
            "vector-effect": "non-scaling-stroke",
            "stroke-opacity": Math.sqrt(weight),
            css: { "--width": `${0.75 + 4 * weight}px` },
          }),
      ),
    ),
  );
  const picture = h(
    "svg:svg",
    { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", height, "aria-hidden": "true" },
    groups,
  );
  const from = names.map((name) => h("li", { role: "option", "aria-selected": "false" }, name));
  const to = names.map((name) => h("li", {}, name));
  const detail = h("div", { class: "detail", "aria-live": "polite" });
  const left = h("ol", { role: "listbox", "aria-label": t("attends") }, from);
  const onActive = (row, column) => {
    const active = Math.max(row, column);
    from.forEach((item, index) => item.setAttribute("aria-selected", String(index === active)));
    groups.forEach((group, index) => group.setAttribute("class", index === active ? "active" : "rest"));
    to.forEach((item, index) => item.style.setProperty("--p", `${100 * clamp(weights[active][index])}%`));
    const best = weights[active]
      .map((weight, index) => [weight, index])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 5);
    const title = t("attends_most", { token: names[active] });
    detail.replaceChildren(
      h("h4", {}, title),
      bars(
        best.map(([weight, index]) => ({ label: `${index + 1} ${names[index]}`, value: weight })),
        title,
      ),
    );
  };
  const leave = () => {
    if (left.contains(document.activeElement)) return;
    for (const group of groups) group.removeAttribute("class");
    for (const item of to) item.style.setProperty("--p", "0%");
    from.forEach((item) => item.setAttribute("aria-selected", "false"));
    detail.replaceChildren(h("p", { class: "note" }, t("hint_tokens")));
  };
  roving(
    left,
    from.map((item) => [item]),
    onActive,
  );
  left.addEventListener("pointerleave", leave);
  left.addEventListener("focusout", () => setTimeout(leave));
  leave();
  const heads = [t("attends"), "", t("attended")].map((text) => h("span", {}, text));
  return [h("div", { class: "lines" }, heads, left, picture, h("ol", { "aria-label": t("attended") }, to)), detail];
}

function map(names, weights) {
  const detail = h("p", { class: "detail short", "aria-live": "polite" });
  const label = (r, c) => t("attention_pair", { a: names[r], b: names[c], value: percent(weights[r][c]) });
  return [
    h("p", { class: "note" }, t("map_note")),
    heatMap({
      caption: t("attention_about"),
      corner: "",
      rows: names,
      columns: names,
      cell: (r, c) => ({ text: "", p: Math.sqrt(weights[r][c]), label: percent(weights[r][c]) }),
      onActive: (r, c) => {
        detail.textContent = label(r, c);
      },
      start: [0, 0],
      kind: "cells",
    }),
    detail,
  ];
}
