// The labels and annotations of the current text: those of the draft, or those that the service reads from the reader's edit.

import { editedReport } from "./save.js";

const TYPING_MS = 300; // pause in typing before the labels are requested

export class EditedLabels {
  #report = null;
  #views = [];
  #text = null; // the edited text that the labels follow; null: the draft
  #timer = 0;

  /** `onChange` is called when other labels are there. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  reset(report, views) {
    this.#report = report;
    this.#views = views;
    this.#useDraft();
  }

  /** Follow a text of the reader; null: the draft. */
  follow(text) {
    if (text === this.#text) return;
    if (text === null || text === this.#report.findings) {
      this.#useDraft();
      this.onChange();
      return;
    }
    this.#text = text;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#request(text), TYPING_MS);
  }

  #useDraft() {
    clearTimeout(this.#timer);
    this.#text = null;
    this.#use(this.#report, "labels");
  }

  /** `source` is the key of the heading. */
  #use({ labels, annotations, not_assessed }, source) {
    Object.assign(this, { labels, annotations, not_assessed, source });
  }

  async #request(text) {
    const edited = await editedReport(this.#report, text, this.#views).catch(() => null); // without an answer: those of the draft
    if (text !== this.#text) return; // the reader went on
    this.#use(edited ?? this.#report, edited ? "labels.edited" : "labels.model");
    this.onChange();
  }
}
