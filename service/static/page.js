// The page: connects the controls, the requests and the views of a report.

import { health, requestDraft } from "./api.js";
import { sentencesOf } from "./compare.js";
import { bindDisplay } from "./display.js";
import { drawCases, drawCaseWeights, drawChecks, drawLabels, drawMade, drawWarnings, forgetPictures } from "./draw.js";
import { Editor } from "./edit.js";
import { bindLanguage, count, onLanguage, problemWords, t } from "./i18n.js";
import { KeyForm } from "./key.js";
import { Maps } from "./maps.js";
import { prefer, preference } from "./preferences.js";
import { save, toClipboard } from "./save.js";
import { Sentences } from "./sentences.js";
import { bindStickyViews } from "./sticky-views.js";
import { bindTheme } from "./theme.js";
import { isUnusual, UnusualQuestion } from "./unusual.js";
import { Views } from "./views.js";

const byId = (id) => document.getElementById(id);
const draftButton = byId("draft");
const cancelButton = byId("cancel");
const status = byId("status");
const result = byId("result");
const help = byId("help");
const replace = byId("replace");
const singleKeys = byId("single-keys");
const NUMBERS = ["top_k", "beam_size"];
const POLL_MS = 30_000; // interval of health checks while the service is ready
const RETRY_MS = 2_000; // interval while it is not

let ready = null; // last answer of /health; null while the service is not ready
let running = null; // AbortController of the running request
let current = null; // the report that is shown
let sentViews = []; // views of the images of that report
let imagesChanged = false; // whether the images changed since that report
let held = []; // sentences that arrived before it is known whether an image is unusual
let currentProblem = null; // the problem that is shown
let statusText = () => ""; // returns the status in the current language

const views = new Views(document, () => {
  imagesChanged = true;
  if (current) setStale(true);
  hideError(); // the error of a view stays visible at the view
  refresh();
});
const keyForm = new KeyForm(document);
const maps = new Maps(document, views);
const sentences = new Sentences(byId("sentences"), highlight);
const question = new UnusualQuestion(document, () => {
  drawAnswer();
  showDone();
});
const editor = new Editor(document, () => {
  drawFindings();
  if (!editor.open) byId("edit").focus();
});

// -- the service's state ---------------------------------------------------------------------------------------------

async function watchService() {
  let delay = POLL_MS;
  try {
    ready = await health();
    showService("ready", serviceWords());
  } catch (problem) {
    ready = null;
    const lost = problem.code === "failed" || problem.code === "unreachable";
    showService(lost ? "failed" : "loading", problem.code === "loading" ? t("loading") : t("error.both", problemWords(problem)));
    delay = RETRY_MS;
  }
  refresh();
  setTimeout(watchService, delay);
}

function serviceWords() {
  const cases = ready.cases === null ? t("cases.none") : count("cases", ready.cases);
  return t("ready", { name: ready.bundle.name, cases, device: ready.device });
}

function showService(state, words) {
  byId("service").dataset.state = state;
  if (byId("service").textContent !== words) byId("service").textContent = words; // announce only changes
}

// -- a draft ---------------------------------------------------------------------------------------------------------

async function draft() {
  if (!ready || running || views.count === 0) return;
  if (!checkNumbers() || (editor.unsaved && !(await confirmReplace()))) return;
  hideError();
  for (const name of views.names) views.showError(name, null);
  running = new AbortController();
  forgetPictures();
  showProgress(0);
  refresh();
  if ([draftButton, document.body].includes(document.activeElement)) cancelButton.focus();
  const options = Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value.trim()]));
  Object.assign(options, { include: "attention,evidence", stream: "true", refine: byId("refine").checked ? "true" : "" });
  const names = views.names;
  try {
    const answer = await requestDraft(views.files, options, { onUpload: showProgress, onEvent: onStreamEvent, signal: running.signal });
    sentViews = names;
    show(answer);
    views.retryPreviews();
    if (question.open) {
      setStatus(() => t("done.unusual"));
      scrollToSection(question.button);
    } else showDone();
  } catch (problem) {
    restorePrevious();
    if (problem.name === "AbortError") setStatus(() => t("cancelled"));
    else if (problem.code === "unauthorized") askForKey(draft, cancelButton);
    else showError(problem);
  } finally {
    const focusLost = [cancelButton, document.body].includes(document.activeElement);
    running = null;
    byId("progress").hidden = true;
    refresh();
    if (focusLost) draftButton.focus();
  }
}

function showDone() {
  const { sentences: drafted, reference_cases: cases } = current;
  setStatus(() => t("done", { sentences: count("sentences", drafted.length), cases: count("cases", cases.length) }));
  scrollToSection(result);
}

/** Ask whether a new draft may replace edited text that was neither copied nor saved. */
function confirmReplace() {
  replace.returnValue = "";
  replace.showModal();
  return new Promise((resolve) => {
    replace.addEventListener("close", () => resolve(replace.returnValue === "replace"), { once: true });
  });
}

/** Check the number fields: an invalid number has an empty value and would be ignored silently. */
function checkNumbers() {
  const bad = NUMBERS.filter((name) => byId(name).validity.badInput);
  for (const name of NUMBERS) showNumberError(name, null);
  for (const name of bad) showNumberError(name, t("number.wrong"), "number.wrong");
  if (bad.length) goToNumber(bad[0]);
  return bad.length === 0;
}

/** After a failed draft, show the previous report again. */
function restorePrevious() {
  if (!result.classList.contains("arriving")) return;
  result.classList.remove("arriving");
  if (current) {
    drawAnswer();
    setStale(imagesChanged);
  } else {
    byId("draft-body").hidden = true;
    byId("empty").hidden = false;
  }
}

/** Show a part of the report as it arrives: first the cases, then sentence by sentence. */
function onStreamEvent({ event, data }) {
  if (event === "cases") {
    beginDraft();
    drawCases(byId("cases"), byId("cases-note"), data.reference_cases, null);
    if (data.reference_cases.length) setStatus(() => t("cases.found"));
  } else if (event === "sentence") {
    held.push(data.sentence);
    if (sentences.list.childElementCount || data.sentence.show_confidence) held.splice(0).forEach((sentence) => sentences.add(sentence));
  }
}

/** Hide the previous report. */
function beginDraft() {
  byId("empty").hidden = true;
  byId("draft-body").hidden = false;
  result.classList.add("arriving");
  question.draw(null);
  held = [];
  editor.close(); // keep the edited text in case this draft fails
  sentences.draw([], true); // calibration is unknown yet: use the lower threshold for doubt
  for (const id of ["warnings", "labels", "checks", "made"]) byId(id).replaceChildren();
  sentences.list.hidden = false;
  for (const id of ["refined", "edited-note", "models-draft", "result-tools", "legend-hidden", "legend-chances"]) byId(id).hidden = true;
  setStale(false);
}

function show(answer) {
  current = answer;
  imagesChanged = false;
  result.classList.remove("arriving");
  byId("empty").hidden = true;
  byId("draft-body").hidden = false;
  editor.reset(answer.findings);
  drawAnswer();
  setStale(false);
}

/** Draw the whole report in the current language. */
function drawAnswer() {
  const calibrated = current.image_checks.length > 0;
  maps.scale(current.sentences);
  byId("result-tools").hidden = current.findings === "";
  question.draw(current);
  byId("legend-words").dataset.i18n = calibrated ? "legend.calibrated" : "legend.words";
  byId("legend-words").textContent = t(byId("legend-words").dataset.i18n);
  drawWarnings(byId("warnings"), current.warnings);
  drawChecks(byId("checks"), current.image_checks, sentViews);
  drawMade(byId("made"), current);
  byId("refined").hidden = current.refined === null;
  if (current.refined !== null) {
    byId("refined-by").textContent = t("refined", { model: current.refined.model });
    byId("refined-text").textContent = current.refined.text;
  }
  drawFindings();
}

/** Draw the current findings, edited or not, and the cases compared with them. */
function drawFindings() {
  const { edited, open, findings } = editor;
  const known = new Map(current.sentences.map((sentence) => [sentence.text, sentence]));
  const shown = edited
    ? sentencesOf(findings).map((text) => known.get(text) ?? { text, confidence: null, supported: null, labels: {}, attention: null, evidence: null })
    : current.sentences;
  const unusual = isUnusual(current);
  const isShown = ({ confidence, show_confidence: allowed = true }) => confidence !== null && allowed && !unusual;
  sentences.draw(shown.map((sentence) => ({ ...sentence, show_confidence: isShown(sentence) })), current.image_checks.length > 0);
  byId("legend-words").hidden = !shown.some(isShown);
  byId("legend-hidden").hidden = shown.every((sentence) => sentence.confidence === null || isShown(sentence));
  byId("legend-hidden").textContent = t(unusual ? "legend.unusual" : "legend.hidden");
  sentences.list.hidden = open;
  byId("edited-note").hidden = !edited;
  byId("models-draft").hidden = !edited;
  byId("models-text").textContent = current.findings;
  byId("edit").setAttribute("aria-expanded", open ? "true" : "false");
  byId("labels-title").dataset.i18n = edited ? "labels.edited" : "labels";
  byId("labels-title").textContent = t(byId("labels-title").dataset.i18n);
  drawLabels(byId("labels"), current, unusual);
  byId("legend-chances").hidden = unusual || Object.keys(current.finding_probabilities ?? {}).length === 0;
  drawCases(byId("cases"), byId("cases-note"), current.reference_cases, { findings, labels: current.labels });
}

/** Show the map and the labels of a sentence; null removes them. */
function highlight(sentence) {
  maps.show(result.classList.contains("stale") ? null : sentence);
  drawCaseWeights(byId("cases"), sentence?.attention?.cases ?? null);
  const named = new Set(Object.keys(sentence?.labels ?? {}));
  for (const chip of byId("labels").querySelectorAll(".chip")) chip.classList.toggle("named", named.has(chip.dataset.finding));
}

function setStale(stale) {
  result.classList.toggle("stale", stale);
  byId("stale").hidden = !stale;
  if (stale) highlight(null);
}

/** Focus a section; scroll only if its heading is out of sight (on a phone). */
function scrollToSection(section) {
  section.focus({ preventScroll: true });
  const top = section.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) {
    section.scrollIntoView({ block: "start", behavior: quietMotion() ? "auto" : "smooth" });
  }
}

function showProgress(share) {
  const bar = byId("progress");
  bar.hidden = false;
  bar.classList.toggle("waiting", share >= 1);
  bar.firstElementChild.style.width = share >= 1 ? "" : `${Math.round(100 * share)}%`;
  setStatus(() => t(share >= 1 ? "reading" : "sending"));
}

/** Set the status; `text` is called again when the language changes. */
function setStatus(text) {
  statusText = text;
  if (status.textContent !== text()) status.textContent = text(); // announce only changes
}

// -- errors --------------------------------------------------------------------------------------------------------

function showError(problem) {
  setStatus(() => "");
  renderError(problem);
  if (NUMBERS.includes(problem.field)) goToNumber(problem.field);
}

function goToNumber(name) {
  byId(name).closest("details").open = true;
  byId(name).focus();
}

function renderError(problem) {
  currentProblem = problem;
  const { title, detail } = problemWords(problem);
  const { field } = problem;
  const isView = field in views.files;
  const head = document.createElement("strong");
  head.textContent = isView ? t("image.wrong", { view: t(field), title }) : t("error.title", { title });
  const box = byId("error");
  const atField = isView || NUMBERS.includes(field);
  box.replaceChildren(head, ...(atField ? [] : [detail])); // shown either at the field or here
  box.hidden = false;
  if (isView) views.showError(field, problem);
  else if (atField) showNumberError(field, detail);
}

/** Ask for a key, then call `retry`; the focus moves to `next`, because the key form closes. */
function askForKey(retry, next) {
  setStatus(() => "");
  keyForm.ask(() => {
    retry();
    next.focus();
  });
}

function hideError() {
  currentProblem = null;
  byId("error").hidden = true;
  setStatus(() => "");
  for (const name of NUMBERS) showNumberError(name, null);
}

/** Show a message at a number field; null removes it. `words` is its key if the page has the text. */
function showNumberError(name, message, words = null) {
  const line = byId(`error-${name}`);
  if (words) line.dataset.i18n = words;
  else delete line.dataset.i18n;
  line.textContent = message ?? "";
  line.hidden = !message;
  byId(name).setAttribute("aria-invalid", message ? "true" : "false");
}

// -- controls --------------------------------------------------------------------------------------------------------

function refresh() {
  draftButton.disabled = !ready || Boolean(running) || views.count === 0;
  draftButton.textContent = t(running ? "drafting" : "draft");
  cancelButton.hidden = !running;
  byId("swap").disabled = Boolean(running) || views.count === 0;
  byId("clear").disabled = Boolean(running) || views.count === 0;
  for (const button of byId("result-tools").querySelectorAll("button")) button.disabled = Boolean(running);
  views.lock(Boolean(running));
}

async function copy() {
  if (editor.open) editor.finish(); // include typed text
  const button = byId("copy");
  const words = editor.findings; // the text may change during the request
  const copied = await toClipboard(words);
  if (copied) editor.markExported(words);
  button.textContent = t(copied ? "copied" : "copy.failed");
  setTimeout(() => (button.textContent = t("copy")), 2_000);
}

async function saveAs(kind) {
  if (editor.open) editor.finish(); // include typed text
  const words = editor.findings; // the text may change during the request
  try {
    await save(kind, current, editor.edited ? words : null, sentViews);
    editor.markExported(words);
  } catch (problem) {
    if (problem.code === "unauthorized") askForKey(() => saveAs(kind), byId(`save-${kind}`));
    else setStatus(() => t("export.failed", { detail: problemWords(problem).detail ?? "" }));
  }
}

function onKey(event) {
  if (help.open || replace.open || event.isComposing) return;
  const typing = event.target.closest?.("input:not([type=file]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Escape" && sentences.unpin()) event.preventDefault();
  if (event.key === "Escape" && editor.open) editor.finish();
  if (typing || (!singleKeys.checked && event.key.length === 1)) return;
  if (event.key === "?") help.showModal();
  else if (event.key === "e" && current?.findings && !running && !question.open) editor.begin();
  else if (event.key === "l") setLarge();
  else if (event.key === "ArrowDown" && document.activeElement === result && current) sentences.focus();
  else if (!views.zoomedBy(event.key)) return;
  event.preventDefault();
}

function setLarge() {
  const large = document.body.classList.toggle("large");
  byId("large").setAttribute("aria-pressed", large ? "true" : "false");
}

/** Printing includes the time of printing and the collapsed sections. */
function beforePaper() {
  if (editor.open) editor.finish();
  if (current) drawMade(byId("made"), current);
  for (const id of ["made-details", "models-draft"]) byId(id).open = true;
}

const quietMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draft();
});
cancelButton.addEventListener("click", () => running?.abort());
byId("swap").addEventListener("click", () => views.swap());
byId("clear").addEventListener("click", () => views.clear());
byId("edit").addEventListener("click", () => (editor.open ? editor.finish() : editor.begin()));
byId("copy").addEventListener("click", copy);
byId("save-text").addEventListener("click", () => saveAs("text"));
byId("save-fhir").addEventListener("click", () => saveAs("fhir"));
byId("print").addEventListener("click", () => window.print());
byId("keys").addEventListener("click", () => help.showModal());
document.addEventListener("keydown", onKey);
byId("large").addEventListener("click", setLarge);
window.addEventListener("beforeprint", beforePaper);
window.addEventListener("beforeunload", (event) => editor.unsaved && event.preventDefault());
singleKeys.checked = preference("keys", ["on", "off"], "on") === "on";
singleKeys.addEventListener("change", () => prefer("keys", singleKeys.checked ? "on" : "off"));
bindDisplay(document, document.querySelector(".views"));
bindStickyViews(document.querySelector(".views"), byId("overlay-note"));
bindTheme(byId("theme"));
bindLanguage(byId("language"));
onLanguage(() => {
  status.textContent = statusText();
  refresh();
  if (ready) showService("ready", serviceWords());
  if (currentProblem) renderError(currentProblem);
  if (current && !result.classList.contains("arriving")) drawAnswer(); // an incomplete report is drawn when it is complete
});
refresh();
watchService();
