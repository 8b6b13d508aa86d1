// The page: connects the controls, the requests and the views of a report.

import { requestDraft, requestStudy } from "./api.js";
import { DisplayWindow } from "./display.js";
import { drawMade, forgetPictures } from "./draw.js";
import { Errors, NUMBERS } from "./errors.js";
import { Examples } from "./examples.js";
import { bindLanguage, count, onLanguage, problemWords, t } from "./i18n.js";
import { Intake } from "./intake.js";
import { KeyForm } from "./key.js";
import { prefer, preference } from "./preferences.js";
import { Prior } from "./prior.js";
import { Progress } from "./progress.js";
import { readAs } from "./read-views.js";
import { ReportView } from "./report-view.js";
import { save, toClipboard } from "./save.js";
import { ServiceState } from "./service-state.js";
import { bindStickyViews } from "./sticky-views.js";
import { bindTheme } from "./theme.js";
import { Views } from "./views.js";

const byId = (id) => document.getElementById(id);
const draftButton = byId("draft");
const cancelButton = byId("cancel");
const help = byId("help");
const replace = byId("replace");
const singleKeys = byId("single-keys");

let running = null; // AbortController of the running request
let reading = false; // whether dropped files are being read
let imagesChanged = false; // whether the images changed since the report that is shown

const views = new Views(document, onImages, refresh);
const intake = new Intake(document, views, (busy) => {
  reading = busy;
  progress.say(() => (busy ? t("reading.files") : ""));
  refresh();
});
const service = new ServiceState(document, refresh);
const progress = new Progress(document);
const errors = new Errors(document, views);
const keyForm = new KeyForm(document);
const report = new ReportView(document, views, showDone);
const display = new DisplayWindow(document, views);
const prior = new Prior(document, views);
const examples = new Examples(document, (files) => intake.takeViews(files), (problem) => errors.show(problem));

/** @param {string} [changed] view with another file; none: the images were exchanged */
function onImages(changed) {
  imagesChanged = true;
  if (views.files[changed] || views.count === 0) prior.clear(); // perhaps another patient's images
  if (report.current) report.setStale(true);
  hideError(); // the error of a view stays visible at the view
  refresh();
}

// -- a draft ---------------------------------------------------------------------------------------------------------

async function draft() {
  if (draftButton.disabled) return;
  if (!errors.checkNumbers() || (report.editor.unsaved && !(await confirmReplace()))) return;
  hideError();
  running = new AbortController();
  forgetPictures();
  progress.start();
  report.wait();
  refresh();
  if ([draftButton, document.body].includes(document.activeElement)) cancelButton.focus();
  const options = Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value.trim()]));
  const refine = service.ready.refine && byId("refine").checked;
  Object.assign(options, { include: "attention,evidence", stream: "true", refine: refine ? "true" : "" });
  const sent = views.names;
  try {
    const onUpload = (share) => progress.upload(share);
    const answer = await requestDraft(views.files, options, { onUpload, onEvent, signal: running.signal });
    imagesChanged = false;
    report.show(...readAs(answer, sent, views));
    views.retryPreviews();
    if (report.question.open) {
      progress.say(() => t("done.unusual"));
      scrollToSection(report.question.button);
    } else showDone();
  } catch (problem) {
    report.restore(imagesChanged);
    if (problem.name === "AbortError") progress.say(() => t("cancelled"));
    else if (problem.code === "unauthorized") askForKey(draft, cancelButton);
    else {
      progress.say(() => "");
      errors.show(problem);
    }
  } finally {
    const focusLost = [cancelButton, document.body].includes(document.activeElement);
    running = null;
    progress.end();
    refresh();
    if (focusLost) draftButton.focus();
  }

  function onEvent(event) {
    report.onEvent(event);
    if (event.event === "cases" && event.data.reference_cases.length) progress.say(() => t("cases.found"));
    if (event.event === "sentence" && refine) progress.say(() => t("refining"));
  }
}

function showDone() {
  const { sentences: drafted, reference_cases: cases } = report.current;
  progress.say(() => t("done", { sentences: count("sentences", drafted.length), cases: count("cases", cases.length) }));
  scrollToSection(report.result);
}

/** Ask whether a new draft may replace edited text that was neither copied nor saved. */
function confirmReplace() {
  replace.returnValue = "";
  replace.showModal();
  return new Promise((resolve) => {
    replace.addEventListener("close", () => resolve(replace.returnValue === "replace"), { once: true });
  });
}

/** Focus a section; scroll only if its heading is out of sight (on a phone). */
function scrollToSection(section) {
  section.focus({ preventScroll: true });
  const top = section.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) {
    section.scrollIntoView({ block: "start", behavior: quietMotion() ? "auto" : "smooth" });
  }
}

const quietMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Ask for a key, then call `retry`; the focus moves to `next`, because the key form closes. */
function askForKey(retry, next) {
  progress.say(() => "");
  keyForm.ask(() => {
    retry();
    next.focus();
  });
}

function hideError() {
  errors.hide();
  progress.say(() => "");
}

/** Open the study that the address names, a link of the worklist. */
async function openStudy() {
  const uid = new URL(document.URL).searchParams.get("study");
  if (!uid) return;
  progress.say(() => t("reading.study"));
  try {
    if (await intake.takeArchive(await requestStudy(uid))) prior.show(uid);
  } catch (problem) {
    progress.say(() => "");
    if (problem.code === "unauthorized") askForKey(openStudy, draftButton);
    else errors.show(problem);
  }
}

// -- controls --------------------------------------------------------------------------------------------------------

function refresh() {
  draftButton.disabled = !service.ready || Boolean(running) || reading || views.count === 0 || views.refused;
  draftButton.textContent = t(running ? "drafting" : "draft");
  cancelButton.hidden = !running;
  byId("swap").disabled = Boolean(running) || views.count === 0;
  byId("clear").disabled = Boolean(running) || views.count === 0;
  for (const button of byId("result-tools").querySelectorAll("button")) button.disabled = Boolean(running);
  views.lock(Boolean(running));
}

async function copy() {
  const { editor } = report;
  if (editor.open) editor.finish(); // include typed text
  const button = byId("copy");
  const words = editor.findings; // the text may change during the request
  const copied = await toClipboard(words);
  if (copied) editor.markExported(words);
  button.textContent = t(copied ? "copied" : "copy.failed");
  setTimeout(() => (button.textContent = t("copy")), 2_000);
}

async function saveAs(kind) {
  const { editor } = report;
  if (editor.open) editor.finish(); // include typed text
  const words = editor.findings; // the text may change during the request
  try {
    await save(kind, report.current, editor.edited ? words : null, report.sentViews);
    editor.markExported(words);
  } catch (problem) {
    if (problem.code === "unauthorized") askForKey(() => saveAs(kind), byId(`save-${kind}`));
    else progress.say(() => t("export.failed", { detail: problemWords(problem).detail ?? "" }));
  }
}

function onKey(event) {
  if (help.open || replace.open || event.isComposing) return;
  const { editor, sentences } = report;
  const typing = event.target.closest?.("input:not([type=file]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Escape" && sentences.unpin()) event.preventDefault();
  if (event.key === "Escape" && editor.open) editor.finish();
  if (typing || (!singleKeys.checked && event.key.length === 1)) return;
  if (event.key === "?") help.showModal();
  else if (event.key === "e" && report.current?.findings && !running && !report.question.open) editor.begin();
  else if (event.key === "l") setLarge();
  else if (event.key === "ArrowDown" && document.activeElement === report.result && report.current) sentences.focus();
  else if (!views.zoomedBy(event.key)) return;
  event.preventDefault();
}

function setLarge() {
  const large = document.body.classList.toggle("large");
  byId("large").setAttribute("aria-pressed", large ? "true" : "false");
}

/** A button that opens and closes the panel that it controls. */
function bindPanel(button) {
  const panel = byId(button.getAttribute("aria-controls"));
  button.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", panel.hidden ? "false" : "true");
  });
}

/** The images give way to the open panels above them, so that the buttons below stay in place. */
function shareHeight(panels) {
  const heightOf = (panel) => panel.offsetHeight + Number.parseFloat(getComputedStyle(panel).marginBottom);
  const observer = new ResizeObserver(() => {
    const height = panels.filter((panel) => !panel.hidden).reduce((sum, panel) => sum + heightOf(panel), 0);
    byId("form").style.setProperty("--panels", `${height}px`);
  });
  for (const panel of panels) observer.observe(panel);
}

/** Printing includes the time of printing and the collapsed sections. */
function beforePaper() {
  if (report.editor.open) report.editor.finish();
  if (report.current) drawMade(byId("made"), report.current);
  for (const id of ["made-details", "models-draft"]) byId(id).open = true;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draft();
});
cancelButton.addEventListener("click", () => running?.abort());
byId("swap").addEventListener("click", () => views.swap());
byId("clear").addEventListener("click", () => {
  views.clear();
  intake.clear();
});
byId("edit").addEventListener("click", () => (report.editor.open ? report.editor.finish() : report.editor.begin()));
byId("copy").addEventListener("click", copy);
byId("save-text").addEventListener("click", () => saveAs("text"));
byId("save-fhir").addEventListener("click", () => saveAs("fhir"));
byId("print").addEventListener("click", () => window.print());
byId("keys").addEventListener("click", () => help.showModal());
for (const id of ["examples-button", "options-button", "display-button"]) bindPanel(byId(id));
shareHeight([...document.querySelectorAll(".panel")]);
document.addEventListener("keydown", onKey);
byId("large").addEventListener("click", setLarge);
window.addEventListener("beforeprint", beforePaper);
window.addEventListener("beforeunload", (event) => report.editor.unsaved && event.preventDefault());
singleKeys.checked = preference("keys", ["on", "off"], "on") === "on";
singleKeys.addEventListener("change", () => prefer("keys", singleKeys.checked ? "on" : "off"));
bindStickyViews(byId("pinned"));
bindTheme(byId("theme"));
bindLanguage(byId("language"));
onLanguage(() => {
  refresh();
  for (const part of [progress, service, errors, display]) part.translate();
  if (report.current && !report.isArriving) report.draw(); // an incomplete report is drawn when it is complete
});
refresh();
service.watch();
examples.load();
openStudy();
