// The map of the highlighted sentence: evidence on a finding that it names, or the attention of the decoder.

import { percent } from "./draw.js";
import { finding, t } from "./i18n.js";
import { attentionColours, describeLocation, evidenceColours } from "./overlay.js";

export class Maps {
  #largest = 0; // contribution in the draft: all its evidence maps have one scale
  #sentence = null;

  /** `views` shows the maps; `root` has the note below them and the switch. */
  constructor(root, views) {
    const find = (id) => root.getElementById(id);
    this.views = views;
    this.parts = { note: find("overlay-note"), what: find("overlay-what"), where: find("overlay-where"), choice: find("overlay-choice") };
    this.attention = find("show-attention");
    this.attention.addEventListener("change", () => this.show(this.#sentence));
  }

  /** Scale the evidence maps of a draft; the switch needs both kinds of map. */
  scale(sentences) {
    const values = sentences.flatMap(({ evidence }) => Object.values(evidence?.patches ?? {}).flat(2));
    this.#largest = Math.max(0, ...values.map(Math.abs));
    this.parts.choice.hidden = this.#largest === 0 || !sentences.some(({ attention }) => attention);
  }

  /** Show the map of a sentence, its legend and its description; null removes them. */
  show(sentence) {
    this.#sentence = sentence;
    const { evidence = null, attention = null } = sentence ?? {};
    const isEvidence = evidence !== null && !(this.attention.checked && attention);
    const map = isEvidence ? evidence : attention;
    const { note, what, where } = this.parts;
    this.views.showMap(map?.patches ?? null, map && (isEvidence ? evidenceColours(this.#largest) : attentionColours(map.patches)));
    note.classList.toggle("idle", !map);
    document.body.classList.toggle("looking", Boolean(map));
    where.textContent = "";
    if (!map) return;
    note.dataset.map = isEvidence ? "evidence" : "attention";
    if (isEvidence) what.textContent = t("overlay.evidence", { finding: finding(evidence.finding) });
    else what.textContent = t(Object.keys(sentence.labels).length ? "overlay.note" : "overlay.without");
    where.textContent = isEvidence ? evidenceText(evidence) : attentionText(attention);
  }
}

function evidenceText({ patches }) {
  const parts = describeLocation(patches).map(({ view, sum, strongest, location }) => {
    const side = t(strongest < 0 ? "overlay.against" : "overlay.for");
    const amount = `${sum < 0 ? "−" : "+"}${Math.abs(sum).toFixed(2)}`;
    return t("overlay.evidence.view", { view: t(`seen.${view}`), amount, side, location: t(`position.${location}`) });
  });
  return t("overlay.evidence.where", { parts: parts.join(t("list.long")) });
}

function attentionText({ patches, cases }) {
  const parts = describeLocation(patches).map(({ view, sum, location }) =>
    t("overlay.view", { view: t(`seen.${view}`), share: percent(sum), location: t(`position.${location}`) }),
  );
  if (cases.length) parts.push(t("overlay.cases", { share: percent(cases.reduce((sum, weight) => sum + weight, 0)) }));
  return t("overlay.where", { parts: parts.join(t("list.long")) });
}
