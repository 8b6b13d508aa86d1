// Copies and saves the current findings.

import { requestExport } from "./api.js";

const KINDS = { text: ["text/plain", "txt"], fhir: ["application/fhir+json", "json"] };

function exportBody(report, edited, views) {
  const sentences = report.sentences.map((sentence) => ({ ...sentence, attention: null, evidence: null })); // no format includes it
  const cases = report.reference_cases.map((found) => ({ ...found, annotations: [] }));
  return { report: { ...report, sentences, reference_cases: cases }, views, ...(edited === null ? {} : { findings: edited }) };
}

/** The report with the findings of the reader, and the labels that the service reads from them. */
export async function editedReport(report, edited, views) {
  return JSON.parse(await (await requestExport(exportBody(report, edited, views), "application/json")).text());
}

/**
 * Save a report in another format.
 * @param {"text"|"fhir"} kind
 * @param {object} report the answer of the service
 * @param {string|null} edited text by the reader; null for the model's draft
 * @param {string[]} views
 */
export async function save(kind, report, edited, views) {
  const [type, ending] = KINDS[kind];
  const address = URL.createObjectURL(await requestExport(exportBody(report, edited, views), type));
  const link = Object.assign(document.createElement("a"), {
    href: address,
    download: `draft-${report.report_id.slice(0, 8)}.${ending}`, // does not identify a patient
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Copy a text; returns whether that succeeded. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // needs https or localhost
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    const previousFocus = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    previousFocus?.focus();
    return copied;
  }
}
