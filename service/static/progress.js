// The stage and the seconds of a running draft: below the images, and where the draft will appear.

import { t } from "./i18n.js";

const TICK_MS = 1_000;

export class Progress {
  #text = () => ""; // returns the status in the current language
  #startedAt = 0;
  #timer = 0;

  constructor(root) {
    const find = (id) => root.getElementById(id);
    this.bar = find("progress");
    this.status = find("status");
    this.stage = find("waiting-stage");
    this.seconds = [find("elapsed"), find("waiting-elapsed")]; // hidden from screen readers, which would read each second
  }

  start() {
    this.#startedAt = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    this.upload(0);
    this.#tick();
  }

  /** Show how much of the images was sent; 1: the service has them. */
  upload(share) {
    this.bar.hidden = false;
    this.bar.classList.toggle("waiting", share >= 1);
    this.bar.firstElementChild.style.width = share >= 1 ? "" : `${Math.round(100 * share)}%`;
    this.say(() => t(share >= 1 ? "reading" : "sending"));
  }

  end() {
    clearInterval(this.#timer);
    this.bar.hidden = true;
    for (const part of this.seconds) part.textContent = "";
  }

  /** Set the status; `text` is called again when the language changes. */
  say(text) {
    this.#text = text;
    for (const part of [this.status, this.stage]) if (part.textContent !== text()) part.textContent = text(); // announce only changes
  }

  translate() {
    this.say(this.#text);
    if (!this.bar.hidden) this.#tick();
  }

  #tick() {
    const seconds = Math.round((performance.now() - this.#startedAt) / 1000);
    for (const part of this.seconds) part.textContent = t("elapsed", { seconds });
  }
}
