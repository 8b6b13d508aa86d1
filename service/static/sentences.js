// The sentences of the draft as a list with keyboard navigation; one of them can be highlighted.

import { sentenceItem } from "./draw.js";

const NARROW = matchMedia("(max-width: 61.99rem)"); // as in page.css

export class Sentences {
  #items = []; // as drawn, in order: {text, confidence, supported, attention, evidence, labels}
  #pinned = -1;
  #calibrated = false;
  #pressed = false; // a pointer presses a sentence: its click follows, before which nothing may move

  /** `onHighlight(sentence|null)` is called with the sentence that is hovered, focused or pinned. */
  constructor(list, onHighlight) {
    this.list = list;
    this.onHighlight = onHighlight;
    list.addEventListener("pointerover", (event) => this.#hover(event));
    list.addEventListener("pointerleave", () => this.#highlight(this.#focused()));
    list.addEventListener("pointerdown", () => (this.#pressed = true));
    list.addEventListener("focusin", (event) => this.#focus(this.#indexOf(event.target)));
    list.addEventListener("focusout", () => this.#highlight(-1));
    list.addEventListener("click", (event) => this.#pin(this.#indexOf(event.target)));
    list.addEventListener("keydown", (event) => this.#onArrowKey(event));
  }

  draw(items, calibrated = false) {
    this.#items = items;
    this.#calibrated = calibrated;
    this.#pinned = -1;
    this.list.replaceChildren(...items.map((item) => sentenceItem(item, calibrated)));
    this.#tabTo(0);
    this.onHighlight(null);
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

  /** Unpin the pinned sentence; returns whether there was one. */
  unpin() {
    const wasPinned = this.#pinned >= 0;
    this.#pinned = -1;
    this.#updatePressed();
    this.#highlight(this.#focused());
    return wasPinned;
  }

  get #buttons() {
    return [...this.list.querySelectorAll("button.sentence")];
  }

  #indexOf(node) {
    return this.#buttons.indexOf(node.closest?.("button.sentence"));
  }

  #focused() {
    return this.#buttons.indexOf(document.activeElement);
  }

  #highlight(index) {
    const shown = index >= 0 ? index : this.#pinned;
    this.#buttons.forEach((button, other) => button.classList.toggle("shown", other === shown));
    this.onHighlight(this.#items[shown] ?? null);
  }

  /** On a narrow screen the legend above the sentences would move them away from the pointer. */
  #hover({ target, pointerType }) {
    if (pointerType !== "touch" && !NARROW.matches) this.#highlight(this.#indexOf(target));
  }

  #focus(index) {
    if (this.#pressed) return;
    this.#highlight(index);
    this.#reveal(index);
  }

  #pin(index) {
    this.#pressed = false;
    if (index < 0) return;
    this.#pinned = this.#pinned === index ? -1 : index;
    this.#updatePressed();
    this.#highlight(index);
    this.#reveal(index);
  }

  /** Scroll a sentence out of the images that cover it, once they are laid out. */
  #reveal(index) {
    requestAnimationFrame(() => requestAnimationFrame(() => this.#buttons[index]?.scrollIntoView({ block: "nearest" })));
  }

  #updatePressed() {
    this.#buttons.forEach((button, other) => button.setAttribute("aria-pressed", other === this.#pinned ? "true" : "false"));
  }

  /** Make one button reachable by Tab; the arrow keys move from there. */
  #tabTo(index) {
    this.#buttons.forEach((button, other) => (button.tabIndex = other === index ? 0 : -1));
  }

  #onArrowKey(event) {
    const buttons = this.#buttons;
    const here = this.#focused();
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    this.#tabTo(to);
    buttons[to].focus();
  }
}
