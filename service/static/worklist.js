// The worklist: the last studies of the DICOM node, read again every few seconds.

import { requestWorklist } from "./api.js";
import { bindLanguage, locale, onLanguage, problemWords, t } from "./i18n.js";
import { KeyForm } from "./key.js";
import { bindTheme } from "./theme.js";

const byId = (id) => document.getElementById(id);
const POLL_MS = 5_000;
const status = byId("worklist-status");
const failure = byId("worklist-error");
const keyForm = new KeyForm(document);
let answer = null; // the last answer
let problem = null; // why the last request failed

async function poll() {
  try {
    [answer, problem] = [await requestWorklist(), null];
  } catch (caught) {
    problem = caught;
    if (problem.code === "unauthorized") {
      draw();
      keyForm.ask(poll);
      return;
    }
  }
  draw();
  setTimeout(poll, POLL_MS);
}

function draw() {
  status.dataset.state = problem ? "failed" : answer ? "ready" : "loading";
  delete status.dataset.i18n;
  status.textContent = problem ? problemWords(problem).title : answer ? t("worklist.counts", answer.counts) : t("contacting");
  failure.hidden = !problem || problem.code === "unauthorized";
  failure.textContent = failure.hidden ? "" : problemWords(problem).detail;
  byId("worklist").hidden = !answer?.studies.length;
  byId("worklist-empty").hidden = Boolean(problem) || !answer || answer.studies.length > 0;
  byId("worklist-rows").replaceChildren(...(answer?.studies ?? []).map(row));
}

function row(study) {
  const line = document.createElement("tr");
  const state = element("td", element("span", t(`worklist.${study.state}`), `state ${study.state}`));
  const since = element("time", new Date(study.changed).toLocaleString(locale()));
  since.dateTime = study.changed;
  const link = element("a", study.patient || study.study_instance_uid);
  link.href = `./?study=${encodeURIComponent(study.study_instance_uid)}`;
  const named = [study.accession, study.patient && study.study_instance_uid].filter(Boolean).join(" · ");
  const next = study.next_try ? t("worklist.next", { time: new Date(study.next_try).toLocaleTimeString(locale()) }) : "";
  line.append(state, element("td", since), element("td", link), element("td", [reason(study), next].filter(Boolean).join(" ")));
  if (named) line.children[2].append(element("small", named));
  return line;
}

function reason(study) {
  return study.code ? problemWords({ code: study.code, title: study.code, detail: study.reason ?? study.code }).detail : "";
}

function element(name, content, classes = "") {
  const made = document.createElement(name);
  made.append(content);
  if (classes) made.className = classes;
  return made;
}

bindTheme(byId("theme"));
bindLanguage(byId("language"));
onLanguage(draw);
poll();
