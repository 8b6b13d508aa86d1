// Problems of a draft: in a box, at a view or at a number field.

import { problemWords, t } from "./i18n.js";

export const NUMBERS = ["top_k", "beam_size"];

export class Errors {
  #problem = null; // that is shown

  constructor(root, views) {
    this.byId = (id) => root.getElementById(id);
    this.views = views;
    this.box = this.byId("error");
  }

  show(problem) {
    this.#draw(problem);
    if (NUMBERS.includes(problem.field)) this.#goTo(problem.field);
  }

  hide() {
    this.#problem = null;
    this.box.hidden = true;
    for (const name of NUMBERS) this.#showAtNumber(name, null);
  }

  translate() {
    if (this.#problem) this.#draw(this.#problem);
  }

  /** Check the number fields: an invalid number has an empty value and would be ignored silently. */
  checkNumbers() {
    const bad = NUMBERS.filter((name) => this.byId(name).validity.badInput);
    for (const name of NUMBERS) this.#showAtNumber(name, null);
    for (const name of bad) this.#showAtNumber(name, t("number.wrong"), "number.wrong");
    if (bad.length) this.#goTo(bad[0]);
    return bad.length === 0;
  }

  #draw(problem) {
    this.#problem = problem;
    const { title, detail } = problemWords(problem);
    const { field } = problem;
    const isView = field in this.views.files;
    const head = document.createElement("strong");
    head.textContent = isView ? t("image.wrong", { view: t(field), title }) : t("error.title", { title });
    const isAtField = isView || NUMBERS.includes(field);
    this.box.replaceChildren(head, ...(isAtField ? [] : [detail])); // shown either at the field or here
    this.box.hidden = false;
    if (isView) this.views.showError(field, problem);
    else if (isAtField) this.#showAtNumber(field, detail);
  }

  #goTo(name) {
    const button = this.byId("options-button");
    if (button.getAttribute("aria-expanded") === "false") button.click();
    this.byId(name).focus();
  }

  /** Show a message at a number field; null removes it. `words` is its key if the page has the text. */
  #showAtNumber(name, message, words = null) {
    const line = this.byId(`error-${name}`);
    if (words) line.dataset.i18n = words;
    else delete line.dataset.i18n;
    line.textContent = message ?? "";
    line.hidden = !message;
    this.byId(name).setAttribute("aria-invalid", message ? "true" : "false");
  }
}
