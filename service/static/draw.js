// Draws a report. Text is inserted as text nodes, never as markup.

import { fetchPicture } from "./api.js";
import { annotationsOf, findingsCompared } from "./compare.js";
import { count, finding, stage, t, term, warningWords } from "./i18n.js";

const LOW_CONFIDENCE = { words: 0.5, calibrated: 0.25 }; // a sentence with less is marked as doubtful
const MIN_CASE_SHARE = 0.005; // of the attention; smaller shares are not shown
const HIGH_CASE_SHARE = 0.05;
const LABEL_ORDER = ["present", "uncertain", "absent"];
const REDACTED = "[redacted]";
const interfaceLanguage = () => document.documentElement.lang; // for labels inside English report text
export const percent = (share) => `${Math.round(100 * share)}%`;
/** One decimal near the warning threshold, rounded down: a value below the threshold is never shown as the threshold. */
const unusualShare = (share) => (share > 0.98 ? `${(Math.floor(1000 * share + 1e-6) / 10).toFixed(1)}%` : percent(share));

/** An element with properties and children; strings become text. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A bar and its value as text: `share` 0..1, `name` for screen readers. */
function measure(share, amount, name, low = false) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  const track = element("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true");
  return element(
    "span",
    { className: low ? "measure low" : "measure" },
    track,
    element("span", { className: "amount" }, element("span", { className: "unseen" }, name), amount),
  );
}

/**
 * A finding with its label, and with its sides and degrees; its regions are in the tooltip.
 * @param {object[]} places annotations
 * @param {{tag?: string, extra?: string}} options
 */
function chip(name, label, places, { tag = "span", extra = "" } = {}) {
  const kind = name === "No Finding" && label === "present" ? "calm" : label; // a normal result, not a finding
  const node = element(
    tag,
    { className: `chip ${kind} ${extra}`, ...(tag === "button" ? { type: "button" } : {}) },
    element("span", { className: "name" }, finding(name)),
    element("span", { className: "unseen" }, `: ${t(`label.${label}`)}`),
  );
  const shown = distinct(places.map((place) => words({ ...place, regions: [] }).join(" · "))).join(" / ");
  if (shown) node.append(element("span", { className: "place" }, ` · ${shown}`));
  node.title = distinct(places.map((place) => words(place).join(t("list")))).join(t("list.long"));
  node.dataset.finding = name;
  return node;
}

const distinct = (texts) => [...new Set(texts.filter((text) => text !== ""))];

const words = ({ side, regions, degree, degree_words: written }) => [
  ...(side ? [t(`side.${side}`)] : []),
  ...regions.map((name) => term("region", name)),
  ...(degree ? [term("degree", degree, written)] : []),
];

/**
 * A sentence of the draft as a list item.
 * @param {{text: string, confidence: number|null, supported: boolean|null, attention: object|null, evidence: object|null}} sentence confidence null:
 *   written by the reader; show_confidence false: readers may not see it
 * @param {boolean} calibrated whether the confidence is the chance that the sentence is right
 */
export function sentenceItem({ text, confidence, supported, attention, evidence, show_confidence: isShown = true }, calibrated) {
  const marks = [];
  if (supported === false) marks.push(element("span", { className: "note doubt", title: t("unsupported.long") }, t("unsupported")));
  if (confidence === null) marks.push(element("span", { className: "note" }, t("mark.edited")));
  else if (isShown) {
    const low = confidence < (calibrated ? LOW_CONFIDENCE.calibrated : LOW_CONFIDENCE.words);
    if (low) marks.push(element("span", { className: "note doubt" }, t("confidence.low")));
    marks.push(measure(confidence, percent(confidence), t("confidence"), low));
  }
  const button = element(
    "button",
    { type: "button", className: "sentence" },
    element("span", { className: "words", lang: "en" }, text),
    element("span", { className: "marks" }, ...marks),
  );
  button.setAttribute("aria-pressed", "false");
  if (attention || evidence) button.setAttribute("aria-describedby", "overlay-note"); // the text description of the overlay
  return element("li", {}, button);
}

/**
 * The findings of a report: the label of the draft, and the probability by the classifier where there is one.
 * A denied finding that the model does not assess has neither a percentage nor the colour of an absent one.
 * Where there are cases, a finding is a button that folds those without it.
 */
export function drawLabels(root, { labels, annotations, finding_probabilities: chances, not_assessed: unassessed, model, reference_cases: cases }, unusual) {
  const chanceOf = (name) => (unusual ? undefined : chances?.[name]);
  const entries = Object.entries(labels);
  const chips = LABEL_ORDER.flatMap((label) =>
    entries.filter(([, value]) => value === label).map(([name]) => {
      const isAssessed = label !== "absent" || !unassessed?.includes(name);
      const tag = cases.length > 0 && name !== "No Finding" ? "button" : "span";
      const node = isAssessed ? chip(name, label, annotationsOf({ labels, annotations }, name), { tag }) : unassessedChip(name);
      if (isAssessed && chanceOf(name) !== undefined) node.append(chanceMark(chanceOf(name)));
      const record = model.findings?.[name];
      if (record) node.title = distinct([node.title, recordWords(record)]).join("\n");
      if (record && !isAssessed) node.append(element("span", { className: "unseen" }, ` ${recordWords(record)}`));
      return node;
    }),
  );
  const silent = entries
    .filter(([name, value]) => value === null && name !== "No Finding")
    .sort(([one], [other]) => (chanceOf(other) ?? -1) - (chanceOf(one) ?? -1))
    .map(([name]) => (chanceOf(name) === undefined ? finding(name) : t("silent.chance", { name: finding(name), share: chance(chanceOf(name)) })));
  const rest = silent.length ? [element("p", { className: "rest" }, t("silent", { names: silent.join(t("list")) }))] : [];
  root.replaceChildren(...chips, ...rest);
}

/** A probability as text; it is never certain. */
const chance = (share) => (share < 0.005 ? "<1%" : share >= 0.995 ? ">99%" : percent(share));

const chanceMark = (share) =>
  element("span", { className: "chance" }, element("span", { className: "unseen" }, t("chance")), chance(share));

function unassessedChip(name) {
  const relation = element("span", { className: "relation" }, t("unassessed"));
  const node = element("span", { className: "chip unassessed" }, finding(name), element("span", { className: "unseen" }, ": "), relation);
  node.dataset.finding = name;
  return node;
}

const recordWords = ({ studies, called, right }) => t("record", { studies: count("studies", studies), calls: count("calls", called), right });

export function drawWarnings(list, warnings) {
  const shown = warnings.filter(({ code }) => code !== "texts_not_available"); // shown with the cases
  list.replaceChildren(...shown.map((warning) => element("li", {}, warningWords(warning))));
}

/** Results of the image checks; `sentViews` are the views in which the images were sent. */
export function drawChecks(list, checks, sentViews) {
  const lines = checks.map(({ frontal, unusual }, index) => {
    const seen = t(frontal >= 0.5 ? "seen.frontal" : "seen.lateral");
    const share = percent(Math.max(frontal, 1 - frontal));
    return t("check.view", { view: t(sentViews[index]), seen, share }) + t("comma") + t("check.unusual", { share: unusualShare(unusual) });
  });
  list.replaceChildren(...lines.map((line) => element("li", {}, line)));
  list.parentElement.hidden = lines.length === 0;
}

/**
 * The reference cases, compared with the current findings.
 * @param {{labels: object, annotations: object[]}|null} draft null while the draft is incomplete
 */
export function drawCases(list, note, cases, draft) {
  list.replaceChildren(...cases.map((found) => drawCase(found, draft)));
  if (cases.length === 0) note.textContent = t("cases.without");
  else note.textContent = t(cases.some(({ findings }) => findings !== null) ? "cases.others" : "cases.hydrate");
}

function drawCase({ rank, case_id: id, similarity, findings, labels, annotations, source_url: url, images }, draft) {
  const head = element(
    "div",
    { className: "case-head" },
    element("span", { className: "rank" }, element("span", { className: "unseen" }, t("rank")), `${rank}`),
    element("code", {}, id),
    element("span", { className: "case-weight" }),
    measure(similarity, similarity.toFixed(2), t("similarity")),
  );
  const text =
    findings === null
      ? element("p", { className: "case-text none" }, t("case.none"))
      : element("p", { className: "case-text", lang: "en" }, ...markRedactions(findings));
  const foot = element("div", { className: "case-foot" }, ...caseFindings({ labels, annotations }, draft));
  const source = webAddress(url);
  if (source) {
    const link = element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, t("source", { host: source.host }));
    link.append(element("span", { className: "unseen" }, t("source.tab")));
    foot.append(link);
  }
  const body = element("div", { className: "case-body" }, element("div", {}, text, foot));
  const views = Object.entries(images ?? {});
  if (views.length) body.prepend(element("div", { className: "case-images" }, ...views.map(([view, address]) => casePicture(id, view, address))));
  const item = element("li", {}, head, body);
  item.dataset.named = namedIn(labels).join("|");
  return item;
}

const namedIn = (labels) => ["present", "uncertain"].flatMap((label) => Object.keys(labels).filter((name) => labels[name] === label));

/** The parsed http or https address; null for anything else, such as an invalid IPv4 address. */
function webAddress(text) {
  try {
    const url = new URL(text);
    return /^https?:$/.test(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

const pictures = new Map(); // address -> picture of a shown case

/** Clear the picture cache before other cases are shown. */
export function forgetPictures() {
  pictures.clear();
}

function casePicture(id, view, address) {
  const image = element("img", { alt: t("case.image", { view: t(view), id }), className: "loading" });
  if (!pictures.has(address)) pictures.set(address, fetchPicture(address));
  pictures.get(address).then((blob) => {
    if (blob === null) return image.remove();
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.src = URL.createObjectURL(blob);
    return image.classList.remove("loading");
  });
  return image;
}

function caseFindings(found, draft) {
  const { labels } = found;
  const named = namedIn(labels);
  const chipOf = (name, extra) => chip(name, labels[name], annotationsOf(found, name), { extra });
  if (draft === null) return [element("div", { className: "labels" }, ...named.map((name) => chipOf(name)))];
  const { relations, missing, denied } = findingsCompared(draft, found);
  const chips = named.map((name) => {
    const relation = relations[name]; // none: No Finding
    const node = chipOf(name, ["side", "only", "denied"].includes(relation) ? "other" : "");
    if (relation) node.append(element("span", { className: "relation" }, t(`case.${relation}`)));
    return node;
  });
  const line = (key, names) => (names.length ? [element("p", { className: "rest" }, t(key, { names: names.map(finding).join(t("list")) }))] : []);
  return [element("div", { className: "labels" }, ...chips, ...line("case.missing", missing), ...line("case.missing.denied", denied))];
}

/** Show the share of the attention of each case; null removes it. */
export function drawCaseWeights(list, weights) {
  [...list.children].forEach((item, index) => {
    const weight = weights?.[index];
    item.classList.toggle("looked-at", weight > HIGH_CASE_SHARE);
    item.querySelector(".case-weight").textContent = weight > MIN_CASE_SHARE ? t("case.attention", { share: percent(weight) }) : "";
  });
}

/** Show redactions of the archive as blocks, so that they are not read as report text. */
function markRedactions(text) {
  return text.split(REDACTED).flatMap((piece, index) => {
    const mark = element("span", { className: "redacted", lang: interfaceLanguage(), title: t("redacted.why") }, t("redacted"));
    return index === 0 ? [piece] : [mark, piece];
  });
}

export function drawMade(list, { model, timings_ms: timings, report_id: id }) {
  const stages = Object.entries(timings)
    .filter(([name]) => name !== "total")
    .map(([name, value]) => `${stage(name)} ${Math.round(value)}`)
    .join(t("list"));
  const rows = [
    [t("made.time"), t("made.times", { seconds: (timings.total / 1000).toFixed(2), stages })],
    [t("made.model"), `${model.name}, ${model.backbone}, ${model.image_size} px`],
    [t("made.bundle"), model.digest.slice(0, 16)],
    [t("made.report"), id],
    [t("printed"), new Date().toISOString().slice(0, 16).replace("T", " ") + " UTC"],
  ];
  list.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
