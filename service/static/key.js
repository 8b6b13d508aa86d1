// The key of a service that asks for one: kept for this browser tab, sent with a draft's request, nowhere else.

import { t } from "./i18n.js";

const NAME = "report-key";
const PRINTABLE = /^[\x21-\x7e]+$/; // what a header carries
let spare = ""; // for a browser that stores nothing

export function storedKey() {
  try {
    return sessionStorage.getItem(NAME) ?? spare;
  } catch {
    return spare;
  }
}

function store(key) {
  spare = key;
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // kept in `spare` until the page is left
  }
}

/** The form that asks for it. */
export class KeyForm {
  #again = null; // what wanted the key

  constructor(root) {
    this.form = root.getElementById("key-form");
    this.input = root.getElementById("key");
    this.words = root.getElementById("key-words");
    this.error = root.getElementById("error-key");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
  }

  /** Ask, because a request was answered 401, and do it `again` with the new key; one that was sent is forgotten. */
  ask(again) {
    this.#again = again;
    const refused = storedKey() !== "";
    store("");
    this.words.dataset.i18n = refused ? "key.refused" : "key.asked";
    this.words.textContent = t(this.words.dataset.i18n);
    this.form.hidden = false;
    this.input.value = "";
    this.#complain("");
    this.input.focus();
  }

  #submit() {
    const key = this.input.value.trim();
    if (!PRINTABLE.test(key)) {
      this.#complain(key === "" ? "key.empty" : "key.malformed");
      this.input.focus();
      return;
    }
    store(key);
    this.input.value = "";
    this.#complain("");
    this.form.hidden = true;
    this.#again();
  }

  /** Say what is wrong with the key; an empty key of words takes it away. */
  #complain(words) {
    this.error.dataset.i18n = words;
    this.error.textContent = words && t(words);
    this.error.hidden = !words;
    this.input.setAttribute("aria-invalid", words ? "true" : "false");
  }
}
