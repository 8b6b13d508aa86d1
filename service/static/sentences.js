// The sentences of the draft as a list that one walks through; the one looked at is told to `onLook`.

import { sentenceItem } from "./draw.js";

export class Sentences {
  #items = []; // what is drawn, in order: {text, confidence, supported, attention, labels}
  #pinned = -1;
  #calibrated = false;

  /** `onLook(sentence|null)`: the sentence that is pointed at, focused or pinned. */
  constructor(list, onLook) {
    this.list = list;
    this.onLook = onLook;
    list.addEventListener("pointerover", (event) => this.#look(this.#placeOf(event.target)));
    list.addEventListener("pointerleave", () => this.#look(this.#focused()));
    list.addEventListener("focusin", (event) => this.#look(this.#placeOf(event.target)));
    list.addEventListener("focusout", () => this.#look(-1));
    list.addEventListener("click", (event) => this.#pin(this.#placeOf(event.target)));
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  draw(items, calibrated = false) {
    this.#items = items;
    this.#calibrated = calibrated;
    this.#pinned = -1;
    this.list.replaceChildren(...items.map((item) => sentenceItem(item, calibrated)));
    this.#tabTo(0);
    this.onLook(null);
  }

  add(item) {
    this.#items.push(item);
    this.list.append(sentenceItem(item, this.#calibrated));
    this.#tabTo(0);
  }

  /** Go to the first sentence. */
  focus() {
    this.#buttons[0]?.focus();
  }

  /** Let a pinned overlay go; whether there was one. */
  unpin() {
    const was = this.#pinned >= 0;
    this.#pinned = -1;
    this.#press();
    this.#look(this.#focused());
    return was;
  }

  get #buttons() {
    return [...this.list.querySelectorAll("button.sentence")];
  }

  #placeOf(node) {
    return this.#buttons.indexOf(node.closest?.("button.sentence"));
  }

  #focused() {
    return this.#buttons.indexOf(document.activeElement);
  }

  #look(place) {
    const shown = place >= 0 ? place : this.#pinned;
    this.#buttons.forEach((button, other) => button.classList.toggle("shown", other === shown));
    this.onLook(this.#items[shown] ?? null);
  }

  #pin(place) {
    if (place < 0) return;
    this.#pinned = this.#pinned === place ? -1 : place;
    this.#press();
    this.#look(place);
  }

  #press() {
    this.#buttons.forEach((button, other) => button.setAttribute("aria-pressed", other === this.#pinned ? "true" : "false"));
  }

  /** One stop for the tabulator; arrows walk from there. */
  #tabTo(place) {
    this.#buttons.forEach((button, other) => (button.tabIndex = other === place ? 0 : -1));
  }

  #walk(event) {
    const buttons = this.#buttons;
    const here = this.#focused();
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    this.#tabTo(to);
    buttons[to].focus();
  }
}
