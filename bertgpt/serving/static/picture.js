/** Choosing a picture: by the file dialog, by dropping it, or by pasting it. It becomes a data URI and goes nowhere else. */

import { field, h } from "./dom.js";
import { t } from "./strings.js";

const TYPES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const MOST = 3_000_000; // bytes that fit into a request of 4 MiB as base64
const EDGE = 1600; // pixels of the longer edge of a picture that was too large

/** Problems of a file, as a sentence for the reader. */
class Unreadable extends Error {}

/** A file as {uri, name, note}; one that is too large to be sent becomes a smaller JPEG. */
async function read(file) {
  if (!TYPES.includes(file.type)) throw new Unreadable(t("picture_type", { name: file.name }));
  const name = file.name || `picture.${file.type.slice(6)}`;
  if (file.size <= MOST) return { uri: await dataUri(file), name, note: "" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // of an animated picture the first frame
  } catch {
    throw new Unreadable(t("picture_broken", { name }));
  }
  const scale = Math.min(1, EDGE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((edge) => Math.max(1, Math.round(edge * scale)));
  const canvas = h("canvas", { width, height });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const note = t("picture_scaled", { width, height });
  return { uri: canvas.toDataURL("image/jpeg", 0.92), name: `${name.replace(/\.\w+$/, "")}.jpg`, note };
}

const dataUri = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Unreadable(t("picture_broken", { name: file.name })));
    reader.readAsDataURL(file);
  });

/**
 * A control for a picture.
 * @param {object} values `picture`: {uri, name} or null
 * @param {(name: string, value: object) => void} set told of a new `picture`
 */
export function pictureField(values, set) {
  const preview = h("img", { class: "preview" });
  const message = h("p", { class: "note", role: "status" });
  const input = h("input", { type: "file", accept: TYPES.join(",") });
  const box = h(
    "div",
    { class: "drop", role: "group", "aria-label": t("picture") },
    field(t("picture"), input, t("picture_note")),
    preview,
    message,
  );
  const say = (text, wrong = false) => {
    message.textContent = text;
    message.classList.toggle("wrong", wrong);
  };
  let shown = null;
  const show = (picture) => {
    shown = picture;
    preview.hidden = !picture;
    preview.alt = picture ? t("picture_alt", { name: picture.name }) : "";
    if (picture) preview.src = picture.uri;
    say([picture?.name, picture?.note].filter(Boolean).join(" · "));
  };
  let latest = 0; // of two files the one chosen last counts, whichever is read first
  const take = async (file) => {
    const mine = ++latest;
    try {
      const picture = await read(file);
      if (mine !== latest) return;
      set("picture", picture);
      show(picture);
    } catch (error) {
      if (mine === latest) say(error instanceof Unreadable ? error.message : t("picture_broken", file), true);
    }
  };
  preview.addEventListener("error", () => say(t("picture_broken", shown), true));
  input.addEventListener("change", () => input.files.length && take(input.files[0]));

  const fileOf = (transfer) => [...(transfer?.files ?? [])][0];
  box.addEventListener("dragover", (event) => {
    event.preventDefault();
    box.dataset.over = "";
  });
  for (const name of ["dragleave", "drop"]) box.addEventListener(name, () => delete box.dataset.over);
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = fileOf(event.dataTransfer);
    if (file) take(file);
  });
  const paste = (event) => {
    if (!box.isConnected) return document.removeEventListener("paste", paste); // the form was made anew
    const file = fileOf(event.clipboardData);
    if (!file) return; // a text, for the field that has the focus
    event.preventDefault();
    take(file);
  };
  document.addEventListener("paste", paste);
  show(values.picture);
  return box;
}

/** A small picture for a first try: a shape in a colour, drawn here. */
export function drawn(shape, colour) {
  const size = 128;
  const canvas = h("canvas", { width: size, height: size });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, size, size);
  pen.fillStyle = colour;
  pen.beginPath();
  if (shape === "circle") pen.arc(size / 2, size / 2, 44, 0, 2 * Math.PI);
  else if (shape === "square") pen.rect(24, 24, 80, 80);
  else for (const [x, y] of [[64, 16], [116, 108], [12, 108]]) pen.lineTo(x, y); // prettier-ignore
  pen.fill();
  return { uri: canvas.toDataURL("image/png"), name: `${shape}.png`, note: "" };
}
