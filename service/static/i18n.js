// The interface in two languages. Reports, cases and what a server of another version says stay as they come.

import { prefer, preference } from "./preferences.js";
import { words as en } from "./words.en.js";
import { words as zh } from "./words.zh.js";

const LANGUAGES = { en, "zh-Hans": zh };
const ATTRIBUTES = { i18n: null, i18nLabel: "aria-label", i18nAlt: "alt", i18nPlaceholder: "placeholder" };
const listeners = [];
let language = preference(
  "language",
  Object.keys(LANGUAGES),
  navigator.language.toLowerCase().startsWith("zh") ? "zh-Hans" : "en",
);

/** The words of a key, with `{name}` replaced by a parameter. */
export function t(key, parameters = {}) {
  const text = LANGUAGES[language][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (mark, name) => parameters[name] ?? mark);
}

/** A number of things: keys `key.one` and `key.many`. */
export const count = (key, number) => t(`${key}.${number === 1 ? "one" : "many"}`, { number: number.toLocaleString(language) });

export const finding = (name) => LANGUAGES[language][`finding.${name}`] ?? name;

/** A stage of the work, as the service names it. */
export const stage = (name) => LANGUAGES[language][`stage.${name}`] ?? en[`stage.${name}`] ?? name;

/** What the service warns of. Another language has words for each code; the English ones name values, so they follow. */
export function warningWords({ code, message }) {
  const own = ownWords("warning", code);
  return own ? `${own}（${message}）` : message;
}

/** Title and detail of a problem. The service's detail names values, so it follows untranslated. */
export function problemWords({ code, title, detail }) {
  const remedy = ownWords("remedy", code);
  return { title: ownWords("problem", code) ?? title, detail: remedy ? `${remedy}（${detail}）` : detail };
}

function ownWords(kind, code) {
  return language === "en" ? undefined : LANGUAGES[language][`${kind}.${code}`];
}

export function onLanguage(listener) {
  listeners.push(listener);
}

export function bindLanguage(select) {
  select.value = language;
  select.addEventListener("change", () => {
    language = select.value;
    prefer("language", language);
    translate();
    for (const listener of listeners) listener();
  });
  translate();
}

function translate() {
  document.documentElement.lang = language;
  document.title = t("title");
  for (const [name, attribute] of Object.entries(ATTRIBUTES)) {
    const marked = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const node of document.querySelectorAll(`[data-${marked}]`)) {
      if (attribute) node.setAttribute(attribute, t(node.dataset[name]));
      else node.textContent = t(node.dataset[name]);
    }
  }
}
