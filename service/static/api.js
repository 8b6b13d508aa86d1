// Requests to the service. Errors (problem+json) are thrown as Problem objects.

import { storedKey } from "./key.js";
import { EventParser } from "./stream.js";

/** A problem of the service, or one that this page found: without a title, its texts are those of `code` in the dictionary. */
export class Problem extends Error {
  constructor({ title = null, detail = "", code = "failed", field = null, status = 0 }) {
    super(detail);
    Object.assign(this, { title, detail, code, field, status });
  }
}

const unreachable = () => new Problem({ code: "unreachable" });
const broken = () => new Problem({ code: "broken" });
const failed = (status, body) => new Problem({ ...(body ?? {}), status });

/** Return the health of the service; throws a Problem while it is not ready. */
export async function health() {
  const response = await fetch("health", { cache: "no-store" }).catch(() => {
    throw unreachable();
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem({ code: "not.ready", ...body });
  return body;
}

/** Fetch a picture, with the key if there is one, as a Blob; null if that fails. */
export async function fetchPicture(address) {
  const response = await fetch(address, { headers: keyHeader() }).catch(() => null);
  return response?.ok ? response.blob() : null;
}

/** The example studies; none if they cannot be listed. */
export async function requestExamples() {
  const response = await fetch("examples", { cache: "no-store" }).catch(() => null);
  return response?.ok ? (await response.json()).examples : [];
}

/** The last studies of the DICOM node. */
export async function requestWorklist() {
  const response = await fetch("worklist", { headers: { Accept: "application/json", ...keyHeader() }, cache: "no-store" }).catch(() => {
    throw unreachable();
  });
  const body = await response.json().catch(() => null);
  if (!response.ok || !body) throw failed(response.status, body);
  return body;
}

/** The images of a study of the PACS, as a zip archive. */
export const requestStudy = async (uid) => (await ofStudy(uid, "images")).blob();

/** The earlier study of its patient: {status, study_date, prior}. */
export const requestPrior = async (uid) => (await ofStudy(uid, "prior")).json();

async function ofStudy(uid, what) {
  const response = await fetch(`studies/${encodeURIComponent(uid)}/${what}`, { headers: keyHeader() }).catch(() => {
    throw unreachable();
  });
  if (!response.ok) throw failed(response.status, await response.json().catch(() => null));
  return response;
}

/**
 * Request a report in another format.
 * @param {object} body of POST /export
 * @param {string} type media type
 */
export const requestExport = (body, type) => post("export", JSON.stringify(body), { "Content-Type": "application/json", Accept: type });

/** Request a picture of a radiograph that the browser cannot draw (DICOM). */
export function requestPreview(file) {
  const form = new FormData();
  form.append("image", file, "image"); // the file name is not sent
  return post("preview", form);
}

async function post(address, body, headers = {}) {
  const response = await fetch(address, { method: "POST", headers: { ...headers, ...keyHeader() }, body }).catch(() => {
    throw unreachable();
  });
  if (!response.ok) throw failed(response.status, await response.json().catch(() => null));
  return response.blob();
}

/**
 * Request a draft.
 * @param {{frontal: File|null, lateral: File|null}} files
 * @param {Object<string, string>} options an empty string selects the bundle's default
 * @param {{onUpload: (share: number) => void, onEvent: (event: {event: string, data: any}) => void, signal: AbortSignal}} hooks
 */
export function requestDraft(files, options, { onUpload, onEvent, signal }) {
  const form = new FormData();
  for (const [name, file] of Object.entries(files)) {
    if (file) form.append(name, file, name); // the file name may contain a patient's name and is not sent
  }
  for (const [name, value] of Object.entries(options)) {
    if (value !== "") form.append(name, value);
  }
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch has no upload progress
    const parser = new EventParser();
    let offset = 0;
    let last = null;
    request.open("POST", "report");
    for (const [name, value] of Object.entries(keyHeader())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onUpload(event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => onUpload(1));
    const consume = () => {
      if (!request.getResponseHeader("Content-Type")?.startsWith("text/event-stream")) return;
      const start = offset;
      offset = request.responseText.length;
      try {
        for (const event of parser.feed(request.responseText.slice(start))) {
          last = event;
          onEvent(event);
        }
      } catch {
        reject(broken()); // before abort: the first rejection wins
        request.abort();
      }
    };
    request.addEventListener("progress", consume);
    request.addEventListener("load", () => {
      consume();
      const body = parsed(request.responseText);
      if (last?.event === "report") resolve(last.data);
      else if (last?.event === "problem") reject(failed(last.data.status, last.data));
      else if (last || (request.status === 200 && !body)) reject(broken());
      else if (request.status === 200) resolve(body);
      else reject(failed(request.status, body));
    });
    request.addEventListener("error", () => reject(last ? broken() : unreachable()));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function keyHeader() {
  const key = storedKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
