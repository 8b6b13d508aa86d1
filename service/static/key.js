// The API key: kept for this browser tab and sent to this service only.

import { t } from "./i18n.js";

const NAME = "report-key";
const PRINTABLE = /^[\x21-\x7e]+$/; // characters that a header carries
let memoryFallback = ""; // for a browser without sessionStorage

export function storedKey() {
  try {
    return sessionStorage.getItem(NAME) ?? memoryFallback;
  } catch {
    return memoryFallback;
  }
}

function store(key) {
  memoryFallback = key;
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // stays in memory until the page is closed
  }
}

/** The form for the key. */
export class KeyForm {
  #retry = null; // runs once a key is entered

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

  /** Show the form after a 401 and delete a rejected key; `retry` runs when a new key is entered. */
  ask(retry) {
    this.#retry = retry;
    const refused = storedKey() !== "";
    store("");
    this.words.dataset.i18n = refused ? "key.refused" : "key.asked";
    this.words.textContent = t(this.words.dataset.i18n);
    this.form.hidden = false;
    this.input.value = "";
    this.#showError("");
    this.input.focus();
  }

  #submit() {
    const key = this.input.value.trim();
    if (!PRINTABLE.test(key)) {
      this.#showError(key === "" ? "key.empty" : "key.malformed");
      this.input.focus();
      return;
    }
    store(key);
    this.input.value = "";
    this.#showError("");
    this.form.hidden = true;
    this.#retry();
  }

  /** Show an error by the key of its text; an empty one hides it. */
  #showError(words) {
    this.error.dataset.i18n = words;
    this.error.textContent = words && t(words);
    this.error.hidden = !words;
    this.input.setAttribute("aria-invalid", words ? "true" : "false");
  }
}
