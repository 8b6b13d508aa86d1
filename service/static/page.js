// The page: what may be done when, and what is said meanwhile.

import { health, requestDraft } from "./api.js";
import { sentencesOf } from "./compare.js";
import { bindDisplay } from "./display.js";
import { drawCases, drawCaseWeights, drawChecks, drawLabels, drawMade, drawWarnings, forgetPictures, percent } from "./draw.js";
import { Editor } from "./edit.js";
import { bindLanguage, count, onLanguage, problemWords, t } from "./i18n.js";
import { KeyForm } from "./key.js";
import { whereabouts } from "./overlay.js";
import { bindPeek } from "./peek.js";
import { prefer, preference } from "./preferences.js";
import { save, toClipboard } from "./save.js";
import { Sentences } from "./sentences.js";
import { bindTheme } from "./theme.js";
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
const HEALTHY_MS = 30_000; // between two looks at a service that is ready
const AGAIN_MS = 2_000;

let ready = null; // what /health said last
let running = null; // AbortController of the request under way
let current = null; // the answer on show
let sent = []; // views that it was made from
let changed = false; // whether the images are others since
let wrong = null; // the problem on show
let told = () => ""; // what the status says, in the language of now

const views = new Views(document, () => {
  changed = true;
  if (current) setStale(true);
  hideError(); // the box and the fields: a view that is wrong still says so itself
  refresh();
});
const keyForm = new KeyForm(document);
const sentences = new Sentences(byId("sentences"), look);
const editor = new Editor(document, () => {
  drawFindings();
  if (!editor.open) byId("edit").focus();
});

// -- the service's state ---------------------------------------------------------------------------------------------

async function watchService() {
  let again = HEALTHY_MS;
  try {
    ready = await health();
    showService("ready", serviceWords());
  } catch (problem) {
    ready = null;
    const lost = problem.code === "failed" || problem.code === "unreachable";
    showService(lost ? "failed" : "loading", problem.code === "loading" ? t("loading") : t("error.both", problemWords(problem)));
    again = AGAIN_MS;
  }
  refresh();
  setTimeout(watchService, again);
}

function serviceWords() {
  const cases = ready.cases === null ? t("cases.none") : count("cases", ready.cases);
  return t("ready", { name: ready.bundle.name, cases, device: ready.device });
}

function showService(state, words) {
  byId("service").dataset.state = state;
  if (byId("service").textContent !== words) byId("service").textContent = words; // told once
}

// -- a draft ---------------------------------------------------------------------------------------------------------

async function draft() {
  if (!ready || running || views.count === 0) return;
  if (!checkNumbers() || (editor.unsaved && !(await agreed()))) return;
  hideError();
  for (const name of views.names) views.showError(name, null);
  running = new AbortController();
  forgetPictures();
  showProgress(0);
  refresh();
  if ([draftButton, document.body].includes(document.activeElement)) cancelButton.focus();
  const options = Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value.trim()]));
  Object.assign(options, { include: "attention", stream: "true", refine: byId("refine").checked ? "true" : "" });
  const names = views.names;
  try {
    const answer = await requestDraft(views.files, options, { onUpload: showProgress, onEvent: arrive, signal: running.signal });
    sent = names;
    show(answer);
    views.drawAgain();
    say(() => t("done", { sentences: count("sentences", answer.sentences.length), cases: count("cases", answer.reference_cases.length) }));
    bringForward(result);
  } catch (problem) {
    takeBack();
    if (problem.name === "AbortError") say(() => t("cancelled"));
    else if (problem.code === "unauthorized") askForKey(draft, cancelButton);
    else showError(problem);
  } finally {
    const lost = [cancelButton, document.body].includes(document.activeElement);
    running = null;
    byId("progress").hidden = true;
    refresh();
    if (lost) draftButton.focus();
  }
}

/** Whether a new draft may take the place of what the reader wrote and took nowhere. */
function agreed() {
  replace.returnValue = "";
  replace.showModal();
  return new Promise((resolve) => {
    replace.addEventListener("close", () => resolve(replace.returnValue === "anew"), { once: true });
  });
}

/** A field that holds no number gives an empty value: it would be passed over in silence. */
function checkNumbers() {
  const bad = NUMBERS.filter((name) => byId(name).validity.badInput);
  for (const name of NUMBERS) showNumberError(name, null);
  for (const name of bad) showNumberError(name, t("number.wrong"), "number.wrong");
  if (bad.length) goToNumber(bad[0]);
  return bad.length === 0;
}

/** What came of a draft that failed goes again; the one before it comes back. */
function takeBack() {
  if (!result.classList.contains("arriving")) return;
  result.classList.remove("arriving");
  if (current) {
    drawAnswer();
    setStale(changed);
  } else {
    byId("draft-body").hidden = true;
    byId("empty").hidden = false;
  }
}

/** A part of the answer that came before the whole: the cases first, then sentence by sentence. */
function arrive({ event, data }) {
  if (event === "cases") {
    beginDraft();
    drawCases(byId("cases"), byId("cases-note"), data.reference_cases, null);
    if (data.reference_cases.length) say(() => t("cases.found"));
  } else if (event === "sentence") sentences.add(data.sentence);
}

/** Clear the last answer from sight. */
function beginDraft() {
  byId("empty").hidden = true;
  byId("draft-body").hidden = false;
  result.classList.add("arriving");
  editor.close(); // what the reader wrote stands again, should this draft fail
  sentences.draw([], true); // whether they are calibrated comes last; none is called doubtful too soon
  for (const id of ["warnings", "labels", "checks", "made"]) byId(id).replaceChildren();
  sentences.list.hidden = false;
  for (const id of ["refined", "edited-note", "models-draft", "result-tools"]) byId(id).hidden = true;
  setStale(false);
}

function show(answer) {
  current = answer;
  changed = false;
  result.classList.remove("arriving");
  byId("empty").hidden = true;
  byId("draft-body").hidden = false;
  editor.reset(answer.findings);
  drawAnswer();
  setStale(false);
}

/** All that an answer says, in the language of now. */
function drawAnswer() {
  const calibrated = current.image_checks.length > 0;
  byId("result-tools").hidden = current.findings === "";
  byId("legend-words").dataset.i18n = calibrated ? "legend.calibrated" : "legend.words";
  byId("legend-words").textContent = t(byId("legend-words").dataset.i18n);
  drawWarnings(byId("warnings"), current.warnings);
  drawChecks(byId("checks"), current.image_checks, sent);
  drawMade(byId("made"), current);
  byId("refined").hidden = current.refined === null;
  if (current.refined !== null) {
    byId("refined-by").textContent = t("refined", { model: current.refined.model });
    byId("refined-text").textContent = current.refined.text;
  }
  drawFindings();
}

/** The findings as they stand, the reader's or the model's, and the cases beside them. */
function drawFindings() {
  const { edited, open, findings } = editor;
  const known = new Map(current.sentences.map((sentence) => [sentence.text, sentence]));
  const standing = edited
    ? sentencesOf(findings).map((text) => known.get(text) ?? { text, confidence: null, supported: null, labels: {}, attention: null })
    : current.sentences;
  sentences.draw(standing, current.image_checks.length > 0);
  sentences.list.hidden = open;
  byId("edited-note").hidden = !edited;
  byId("models-draft").hidden = !edited;
  byId("models-text").textContent = current.findings;
  byId("edit").setAttribute("aria-expanded", open ? "true" : "false");
  byId("labels-title").dataset.i18n = edited ? "labels.edited" : "labels";
  byId("labels-title").textContent = t(byId("labels-title").dataset.i18n);
  drawLabels(byId("labels"), current.labels);
  drawCases(byId("cases"), byId("cases-note"), current.reference_cases, { findings, labels: current.labels });
}

/** Show where the model looked while it wrote a sentence; null: nowhere. */
function look(sentence) {
  const attention = sentence?.attention ?? null;
  const stale = result.classList.contains("stale");
  views.showAttention(stale ? null : (attention?.patches ?? null));
  byId("overlay-note").classList.toggle("idle", !attention || stale);
  document.body.classList.toggle("looking", Boolean(attention) && !stale);
  byId("overlay-where").textContent = attention && !stale ? lookedAt(attention) : "";
  drawCaseWeights(byId("cases"), attention?.cases ?? null);
  const named = new Set(Object.keys(sentence?.labels ?? {}));
  for (const chip of byId("labels").querySelectorAll(".chip")) chip.classList.toggle("named", named.has(chip.dataset.finding));
}

/** In words: how much of the attention lay where. */
function lookedAt({ patches, cases }) {
  const parts = whereabouts(patches).map(({ view, share, place }) =>
    t("overlay.view", { view: t(`seen.${view}`), share: percent(share), place: t(`place.${place}`) }),
  );
  if (cases.length) parts.push(t("overlay.cases", { share: percent(cases.reduce((sum, weight) => sum + weight, 0)) }));
  return t("overlay.where", { parts: parts.join(t("list.long")) });
}

function setStale(stale) {
  result.classList.toggle("stale", stale);
  byId("stale").hidden = !stale;
  if (stale) look(null);
}

/** Move the focus to a section, and the page only where the section's head is out of sight (on a phone). */
function bringForward(section) {
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
  say(() => t(share >= 1 ? "reading" : "sending"));
}

/** Let the status say what `words` gives, now and in another language. */
function say(words) {
  told = words;
  if (status.textContent !== words()) status.textContent = words(); // told once, not at every percent
}

// -- errors in plain words -------------------------------------------------------------------------------------------

function showError(problem) {
  say(() => "");
  tellError(problem);
  if (NUMBERS.includes(problem.field)) goToNumber(problem.field);
}

function goToNumber(name) {
  byId(name).closest("details").open = true;
  byId(name).focus();
}

function tellError(problem) {
  wrong = problem;
  const { title, detail } = problemWords(problem);
  const { field } = problem;
  const isView = field in views.files;
  const head = document.createElement("strong");
  head.textContent = isView ? t("image.wrong", { view: t(field), title }) : t("error.title", { title });
  const box = byId("error");
  const atField = isView || NUMBERS.includes(field);
  box.replaceChildren(head, ...(atField ? [] : [detail])); // said once: at the field, or here
  box.hidden = false;
  if (isView) views.showError(field, problem);
  else if (atField) showNumberError(field, detail);
}

/** Ask for a key and do what wanted it `again`; the focus goes to `next`, as the form that had it is gone then. */
function askForKey(again, next) {
  say(() => "");
  keyForm.ask(() => {
    again();
    next.focus();
  });
}

function hideError() {
  wrong = null;
  byId("error").hidden = true;
  say(() => "");
  for (const name of NUMBERS) showNumberError(name, null);
}

/** Null takes the message away; `words` is its key, where it is the page's own. */
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
  if (editor.open) editor.finish(); // what is typed is what is taken
  const button = byId("copy");
  const words = editor.findings; // more may be typed meanwhile
  const copied = await toClipboard(words);
  if (copied) editor.take(words);
  button.textContent = t(copied ? "copied" : "copy.failed");
  setTimeout(() => (button.textContent = t("copy")), 2_000);
}

async function saveAs(kind) {
  if (editor.open) editor.finish(); // what is typed is what is taken
  const words = editor.findings; // more may be typed meanwhile
  try {
    await save(kind, current, editor.edited ? words : null, sent);
    editor.take(words);
  } catch (problem) {
    if (problem.code === "unauthorized") askForKey(() => saveAs(kind), byId(`save-${kind}`));
    else say(() => t("export.failed", { detail: problemWords(problem).detail ?? "" }));
  }
}

function onKey(event) {
  if (help.open || replace.open || event.isComposing) return;
  const typing = event.target.closest?.("input:not([type=file]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
  if (event.key === "Escape" && sentences.unpin()) event.preventDefault();
  if (event.key === "Escape" && editor.open) editor.finish();
  if (typing || (!singleKeys.checked && event.key.length === 1)) return;
  if (event.key === "?") help.showModal();
  else if (event.key === "e" && current?.findings && !running) editor.begin();
  else if (event.key === "l") setLarge();
  else if (event.key === "ArrowDown" && document.activeElement === result && current) sentences.focus();
  else if (!views.zoomedBy(event.key)) return;
  event.preventDefault();
}

function setLarge() {
  const large = document.body.classList.toggle("large");
  byId("large").setAttribute("aria-pressed", large ? "true" : "false");
}

/** On paper stand the hour of printing and what is folded up on the screen. */
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
bindPeek(document.querySelector(".views"), byId("overlay-note"));
bindTheme(byId("theme"));
bindLanguage(byId("language"));
onLanguage(() => {
  status.textContent = told();
  refresh();
  if (ready) showService("ready", serviceWords());
  if (wrong) tellError(wrong);
  if (current && !result.classList.contains("arriving")) drawAnswer(); // what arrives is drawn once it is whole
});
refresh();
watchService();
