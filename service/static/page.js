// The page: what may be done when, and what is said meanwhile.

import { health, requestDraft } from "./api.js";
import { drawCases, drawLabels, drawMade, drawSentences, drawWarnings } from "./draw.js";
import { KeyForm } from "./key.js";
import { Views } from "./views.js";

const byId = (id) => document.getElementById(id);
const draftButton = byId("draft");
const cancelButton = byId("cancel");
const status = byId("status");
const result = byId("result");
const NUMBERS = ["top_k", "beam_size"];

let ready = false;
let running = null; // AbortController of the request under way
let current = null; // the answer on show

const views = new Views(document, () => {
  if (current) setStale(true);
  hideError();
  refresh();
});

const keyForm = new KeyForm(document, () => {
  draft();
  cancelButton.focus(); // the form that had the focus is gone
});

// -- the service's state ---------------------------------------------------------------------------------------------

async function watchService() {
  const line = byId("service");
  let again = 0;
  try {
    const { device, bundle, cases } = await health();
    const index = cases === null ? "no reference cases" : `${cases.toLocaleString("en")} reference cases`;
    line.textContent = `Ready: ${bundle.name}, ${index}, ${device}`;
    line.dataset.state = "ready";
    ready = true;
    again = 30_000;
  } catch (problem) {
    ready = false;
    line.dataset.state = problem.code === "failed" || problem.code === "unreachable" ? "failed" : "loading";
    line.textContent = problem.code === "loading" ? "Loading the model…" : `${problem.title}. ${problem.detail}`;
    again = 2_000;
  }
  refresh();
  setTimeout(watchService, again);
}

// -- a draft ---------------------------------------------------------------------------------------------------------

async function draft() {
  if (!ready || running || views.count === 0) return;
  running = new AbortController();
  hideError();
  showProgress(0);
  refresh();
  const options = Object.fromEntries(NUMBERS.map((name) => [name, byId(name).value.trim()]));
  try {
    show(await requestDraft(views.files, options, { onUpload: showProgress, signal: running.signal }));
    status.textContent = `Draft ready: ${count(current.sentences.length, "sentence")}, ${count(current.reference_cases.length, "reference case")}.`;
    bringForward(result);
  } catch (problem) {
    if (problem.name === "AbortError") status.textContent = "Cancelled.";
    else if (problem.code === "unauthorized") askForKey();
    else showError(problem);
  } finally {
    running = null;
    byId("progress").hidden = true;
    refresh();
  }
}

function show(answer) {
  current = answer;
  byId("empty").hidden = true;
  byId("draft-body").hidden = false;
  byId("copy").hidden = answer.findings === "";
  drawWarnings(byId("warnings"), answer.warnings);
  drawSentences(byId("sentences"), answer.sentences);
  drawLabels(byId("labels"), answer.labels);
  drawCases(byId("cases"), byId("cases-note"), answer.reference_cases);
  drawMade(byId("made"), answer);
  setStale(false);
}

function setStale(stale) {
  result.classList.toggle("stale", stale);
  byId("stale").hidden = !stale;
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
  const words = share >= 1 ? "Reading the images and writing the draft…" : "Sending the images…";
  if (status.textContent !== words) status.textContent = words; // told once, not at every percent
}

// -- errors in plain words -------------------------------------------------------------------------------------------

function showError({ title, detail, field }) {
  status.textContent = "";
  const isView = field in views.files;
  const head = document.createElement("strong");
  head.textContent = isView ? `${field[0].toUpperCase()}${field.slice(1)} image. ${title}.` : `${title}.`;
  const box = byId("error");
  const atField = isView || NUMBERS.includes(field);
  box.replaceChildren(head, ...(atField ? [] : [detail])); // said once: at the field, or here
  box.hidden = false;
  if (isView) views.showError(field, detail);
  else if (atField) showNumberError(field, detail);
}

function askForKey() {
  status.textContent = "";
  keyForm.ask();
}

function hideError() {
  byId("error").hidden = true;
  status.textContent = "";
  for (const name of Object.keys(views.files)) views.showError(name, null);
  for (const name of NUMBERS) showNumberError(name, null);
}

function showNumberError(name, message) {
  const line = byId(`error-${name}`);
  line.textContent = message ?? "";
  line.hidden = !message;
  byId(name).setAttribute("aria-invalid", message ? "true" : "false");
  if (message) {
    byId(name).closest("details").open = true;
    byId(name).focus();
  }
}

// -- controls --------------------------------------------------------------------------------------------------------

function refresh() {
  draftButton.disabled = !ready || Boolean(running) || views.count === 0;
  draftButton.textContent = running ? "Drafting…" : "Draft findings";
  cancelButton.hidden = !running;
  byId("swap").disabled = Boolean(running) || views.count === 0;
  byId("clear").disabled = Boolean(running) || views.count === 0;
  views.lock(Boolean(running));
}

async function copy() {
  const button = byId("copy");
  button.textContent = (await toClipboard(current.findings)) ? "Copied" : "Copy failed";
  setTimeout(() => (button.textContent = "Copy text"), 2_000);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // needs https or localhost
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    byId("copy").focus();
    return copied;
  }
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const quietMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draft();
});
cancelButton.addEventListener("click", () => running?.abort());
byId("swap").addEventListener("click", () => views.swap());
byId("clear").addEventListener("click", () => views.clear());
byId("copy").addEventListener("click", copy);
refresh();
watchService();
