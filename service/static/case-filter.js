// Folds the reference cases that do not name a finding of the reader's choice: they keep their place, rank and id.

import { count, finding, t } from "./i18n.js";

export class CaseFilter {
  #chosen = null; // finding

  constructor(root) {
    [this.labels, this.list, this.note] = ["labels", "cases", "cases-folded"].map((id) => root.getElementById(id));
    this.labels.addEventListener("click", ({ target }) => this.#choose(target.closest("button.chip")?.dataset.finding));
  }

  reset() {
    this.#chosen = null;
    this.note.textContent = "";
  }

  /** Fold the cases as they are drawn now. */
  apply() {
    const chips = [...this.labels.querySelectorAll("button.chip")];
    if (!chips.some((chip) => chip.dataset.finding === this.#chosen)) this.reset();
    const cases = [...this.list.children];
    const names = (item) => this.#chosen === null || item.dataset.named.split("|").includes(this.#chosen);
    for (const chip of chips) chip.setAttribute("aria-pressed", chip.dataset.finding === this.#chosen ? "true" : "false");
    for (const item of cases) item.classList.toggle("folded", !names(item));
    this.note.textContent =
      this.#chosen === null ? "" : t("cases.folded", { number: cases.filter(names).length, cases: count("cases", cases.length), finding: finding(this.#chosen) });
  }

  #choose(name) {
    if (name === undefined) return;
    this.#chosen = name === this.#chosen ? null : name;
    this.apply();
  }
}
