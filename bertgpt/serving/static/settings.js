/** What the browser keeps: the language and the colours that were chosen. */

import { LANGUAGES, setLanguage } from "./strings.js";

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`bertgpt.${key}`, value);
    return localStorage.getItem(`bertgpt.${key}`);
  } catch {
    return null; // the browser keeps nothing: the switch works until the page is closed
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").value = theme;
}

/** Sets the language and the colours that were chosen, else those of the browser, and listens to the switches. */
export function startSettings(onLanguage) {
  const wished = remembered("language") ?? (navigator.languages?.[0] ?? navigator.language ?? "").slice(0, 2);
  setLanguage(LANGUAGES.includes(wished) ? wished : "en");
  setTheme(remembered("theme") ?? "");
  document.getElementById("language").addEventListener("change", (event) => {
    setLanguage(event.target.value);
    remembered("language", event.target.value);
    onLanguage();
  });
  document.getElementById("theme").addEventListener("change", (event) => {
    setTheme(event.target.value);
    remembered("theme", event.target.value);
  });
}
