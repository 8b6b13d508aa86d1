// An image that is unlike the training radiographs: the page asks before it shows the draft, once for each report.

export const isUnusual = (report) => report.warnings.some(({ code }) => code === "unusual_image");

export class UnusualQuestion {
  #accepted = null; // id of the report that the reader chose to see

  /** `onAccept` is called when the reader wants to see the draft. */
  constructor(root, onAccept) {
    this.result = root.getElementById("result");
    this.box = root.getElementById("unusual");
    this.button = root.getElementById("unusual-show");
    this.report = null;
    this.button.addEventListener("click", () => {
      this.#accepted = this.report.report_id;
      onAccept();
    });
  }

  /** Whether the draft is hidden until the reader answers. */
  get open() {
    return this.report !== null && isUnusual(this.report) && this.#accepted !== this.report.report_id;
  }

  /** Show what a report needs; null: no report is complete. */
  draw(report) {
    this.report = report;
    this.result.classList.toggle("unusual", report !== null && isUnusual(report));
    this.result.classList.toggle("asking", this.open);
    this.box.hidden = !this.open;
  }
}
