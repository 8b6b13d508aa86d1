// The report on the page: as it arrives, complete, and with the reader's edits.

import { sentencesOf } from "./compare.js";
import { drawCases, drawCaseWeights, drawChecks, drawLabels, drawMade, drawWarnings } from "./draw.js";
import { CaseFilter } from "./case-filter.js";
import { Editor } from "./edit.js";
import { t } from "./i18n.js";
import { EditedLabels } from "./labels.js";
import { Maps } from "./maps.js";
import { Sentences } from "./sentences.js";
import { isUnusual, UnusualQuestion } from "./unusual.js";

export class ReportView {
  current = null; // the report that is shown
  sentViews = []; // views in which its images were sent
  #shownViews = []; // views in which they are shown
  #held = []; // sentences that arrived before it is known whether an image is unusual

  /** `onAccept` is called when the reader wants to see the draft of an unusual image. */
  constructor(root, views, onAccept) {
    this.byId = (id) => root.getElementById(id);
    this.result = this.byId("result");
    this.maps = new Maps(root, views);
    this.sentences = new Sentences(this.byId("sentences"), (sentence) => this.#highlight(sentence));
    this.question = new UnusualQuestion(root, () => {
      this.draw();
      onAccept();
    });
    this.editor = new Editor(root, () => this.#onEdit(), (text) => this.labels.follow(text));
    this.labels = new EditedLabels(() => this.#drawLabels());
    this.filter = new CaseFilter(root);
  }

  get isArriving() {
    return this.result.classList.contains("arriving");
  }

  /** Show a part of the report as it arrives: first the cases, then the sentences. */
  onEvent({ event, data }) {
    if (event === "cases") {
      this.#begin();
      drawCases(this.byId("cases"), this.byId("cases-note"), data.reference_cases, null);
    } else if (event === "sentence") {
      this.#held.push(data.sentence);
      if (!this.sentences.list.childElementCount && !data.sentence.show_confidence) return;
      this.#held.splice(0).forEach((sentence) => this.sentences.add(sentence));
      this.byId("waiting").hidden = true;
    }
  }

  /** Say where the draft will appear what is going on, unless a report is shown there. */
  wait() {
    this.byId("waiting").hidden = this.current !== null;
    this.byId("empty").hidden = true;
  }

  /** Hide the previous report. */
  #begin() {
    this.byId("empty").hidden = true;
    this.byId("waiting").hidden = false;
    this.byId("draft-body").hidden = false;
    this.result.classList.add("arriving");
    this.question.draw(null);
    this.#held = [];
    this.filter.reset();
    this.editor.close(); // keep the edited text in case this draft fails
    this.sentences.draw([], true); // calibration is unknown yet: use the lower threshold for doubt
    for (const id of ["warnings", "labels", "checks", "made"]) this.byId(id).replaceChildren();
    this.sentences.list.hidden = false;
    for (const id of ["refined", "edited-note", "models-draft", "legend-hidden", "legend-chances", "legend-sides", "legend-fold"]) this.byId(id).hidden = true;
    this.setStale(false);
  }

  /** Show a complete report, whose images were sent in `sent` and are shown in `shown`. */
  show(report, sent, shown) {
    this.current = report;
    this.sentViews = sent;
    this.#shownViews = shown;
    this.#end();
    this.byId("draft-body").hidden = false;
    this.editor.reset(report.findings);
    this.labels.reset(report, sent);
    this.filter.reset();
    this.draw();
    this.setStale(false);
  }

  /** After a failed draft, show the previous report again; `isStale`: the images have changed since it was made. */
  restore(isStale) {
    const wasArriving = this.isArriving;
    this.#end();
    if (this.current === null) {
      this.byId("draft-body").hidden = true;
      this.byId("empty").hidden = false;
    } else if (wasArriving) {
      this.draw();
      this.setStale(isStale);
    }
  }

  #end() {
    this.result.classList.remove("arriving");
    for (const id of ["empty", "waiting"]) this.byId(id).hidden = true;
  }

  /** Draw the whole report in the current language. */
  draw() {
    const { current } = this;
    const isCalibrated = current.image_checks.length > 0;
    this.maps.scale(current.sentences);
    this.byId("result-tools").hidden = current.findings === "";
    this.question.draw(current);
    this.#setText("legend-words", isCalibrated ? "legend.calibrated" : "legend.words");
    drawWarnings(this.byId("warnings"), current.warnings);
    drawChecks(this.byId("checks"), current.image_checks, this.#shownViews);
    drawMade(this.byId("made"), current);
    this.byId("refined").hidden = current.refined === null;
    if (current.refined !== null) {
      this.byId("refined-by").textContent = t("refined", { model: current.refined.model });
      this.byId("refined-text").textContent = current.refined.text;
    }
    this.#drawFindings();
  }

  /** Draw the current findings, edited or not, and what depends on them. */
  #drawFindings() {
    const { current, editor } = this;
    const known = new Map(current.sentences.map((sentence) => [sentence.text, sentence]));
    const shown = editor.edited
      ? sentencesOf(editor.findings).map((text) => known.get(text) ?? { text, confidence: null, supported: null, labels: {}, attention: null, evidence: null })
      : current.sentences;
    const unusual = isUnusual(current);
    const isShown = ({ confidence, show_confidence: allowed = true }) => confidence !== null && allowed && !unusual;
    this.sentences.draw(shown.map((sentence) => ({ ...sentence, show_confidence: isShown(sentence) })), current.image_checks.length > 0);
    this.byId("legend-words").hidden = !shown.some(isShown);
    this.byId("legend-hidden").hidden = shown.every((sentence) => sentence.confidence === null || isShown(sentence));
    this.byId("legend-hidden").textContent = t(unusual ? "legend.unusual" : "legend.hidden");
    this.sentences.list.hidden = editor.open;
    this.byId("edited-note").hidden = !editor.edited;
    this.byId("models-draft").hidden = !editor.edited;
    this.byId("models-text").textContent = current.findings;
    this.byId("edit").setAttribute("aria-expanded", editor.open ? "true" : "false");
    this.#drawLabels();
  }

  /** Draw the labels of the current text, and the cases compared with them. */
  #drawLabels() {
    const { current } = this;
    const { labels, annotations, not_assessed, source } = this.labels;
    const unusual = isUnusual(current);
    this.#setText("labels-title", source);
    drawLabels(this.byId("labels"), { ...current, labels, annotations, not_assessed }, unusual);
    this.byId("legend-chances").hidden = unusual || Object.keys(current.finding_probabilities ?? {}).length === 0;
    drawCases(this.byId("cases"), this.byId("cases-note"), current.reference_cases, { labels, annotations });
    this.byId("legend-fold").hidden = current.reference_cases.length === 0;
    this.byId("legend-sides").hidden = !annotations.some((one) => one.presence !== "absent" && (one.side || one.degree));
    this.filter.apply();
  }

  #onEdit() {
    this.labels.follow(this.editor.text);
    this.#drawFindings();
    if (!this.editor.open) this.byId("edit").focus();
  }

  #setText(id, key) {
    this.byId(id).dataset.i18n = key;
    this.byId(id).textContent = t(key);
  }

  /** Show the map and the labels of a sentence; null removes them. */
  #highlight(sentence) {
    this.maps.show(this.result.classList.contains("stale") ? null : sentence);
    drawCaseWeights(this.byId("cases"), sentence?.attention?.cases ?? null);
    const named = new Set(Object.keys(sentence?.labels ?? {}));
    for (const chip of this.byId("labels").querySelectorAll(".chip")) chip.classList.toggle("named", named.has(chip.dataset.finding));
  }

  setStale(isStale) {
    this.result.classList.toggle("stale", isStale);
    this.byId("stale").hidden = !isStale;
    if (isStale) this.#highlight(null);
  }
}
