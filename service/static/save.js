// Copy, save and print what stands as findings.

import { exported } from "./api.js";

const KINDS = { text: ["text/plain", "txt"], fhir: ["application/fhir+json", "json"] };

/**
 * Save an answer in another format.
 * @param {"text"|"fhir"} kind
 * @param {object} report the answer as it came
 * @param {string|null} edited the reader's words; null: the model's draft
 * @param {string[]} views
 */
export async function save(kind, report, edited, views) {
  const [type, ending] = KINDS[kind];
  const sentences = report.sentences.map((sentence) => ({ ...sentence, attention: null })); // no format holds it
  const body = { report: { ...report, sentences }, views, ...(edited === null ? {} : { findings: edited }) };
  const address = URL.createObjectURL(await exported(body, type));
  const link = Object.assign(document.createElement("a"), {
    href: address,
    download: `draft-${report.report_id.slice(0, 8)}.${ending}`, // names no patient
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Whether the text is on the clipboard now. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // needs https or localhost
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}
