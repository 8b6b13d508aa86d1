// The interface in two languages. Reports and reference cases are not translated.

import { prefer, preference } from "./preferences.js";
import { translated } from "./messages.zh.js";
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

export const locale = () => language;

/** The text of a key, with each `{name}` replaced by its parameter. */
export function t(key, parameters = {}) {
  const text = LANGUAGES[language][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (mark, name) => parameters[name] ?? mark);
}

/** A number of things: keys `key.one` and `key.many`. */
export const count = (key, number) => t(`${key}.${number === 1 ? "one" : "many"}`, { number: number.toLocaleString(language) });

export const finding = (name) => LANGUAGES[language][`finding.${name}`] ?? name;

/** A region or degree of the service; in English as it was written. */
export const term = (kind, name, written = name) => LANGUAGES[language][`${kind}.${name}`] ?? written;

/** A processing stage, by the name that the service uses. */
export const stage = (name) => LANGUAGES[language][`stage.${name}`] ?? en[`stage.${name}`] ?? name;

/** Text of a warning: translated with its values, else the translation of its code followed by the English message. */
export function warningWords({ code, message }) {
  return translatedMessage(message) ?? withEnglish(translation("warning", code), message);
}

/** Title and detail of a problem: translated with its values, else the translation of its code followed by the English detail. */
export function problemWords({ code, title, detail, status }) {
  if (title === null) return { title: t(code), detail: t(`${code}.detail`, { status }) };
  return {
    title: translation("problem", code) ?? title,
    detail: translatedMessage(detail) ?? withEnglish(translation("remedy", code), detail),
  };
}

const translatedMessage = (message) => (language === "en" || !message ? null : translated(message));
const withEnglish = (words, message) => (words ? `${words}（${message}）` : message);

function translation(kind, code) {
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
