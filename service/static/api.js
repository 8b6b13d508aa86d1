// Talks to the service. Errors arrive as problem+json and leave as Problem objects in plain words.

import { t } from "./i18n.js";
import { storedKey } from "./key.js";
import { EventParser } from "./stream.js";

export class Problem extends Error {
  constructor({ title, detail, code = "unknown", field = null, status = 0 }) {
    super(detail);
    Object.assign(this, { title, detail, code, field, status });
  }
}

const unreachable = () => new Problem({ title: t("unreachable"), detail: t("unreachable.detail"), code: "unreachable" });
const broken = () => new Problem({ title: t("broken"), detail: t("broken.detail"), code: "broken" });
const failed = (status, body) =>
  new Problem({ title: t("failed"), detail: t("failed.detail", { status }), ...(body ?? {}), status });

/** Health of the service: its answer when ready, a Problem thrown while it is not. */
export async function health() {
  const response = await fetch("health", { cache: "no-store" }).catch(() => {
    throw unreachable();
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem({ title: t("not.ready"), detail: t("not.ready.detail"), ...body });
  return body;
}

/** A file of the service that a key may guard, as a Blob; null where there is none for us. */
export async function picture(address) {
  const response = await fetch(address, { headers: keyHeader() }).catch(() => null);
  return response?.ok ? response.blob() : null;
}

/**
 * An answer in another format.
 * @param {object} body of POST /export
 * @param {string} type media type
 */
export const exported = (body, type) => posted("export", JSON.stringify(body), { "Content-Type": "application/json", Accept: type });

/** A picture of a radiograph that this browser does not draw, as the service reads it. */
export function drawn(file) {
  const form = new FormData();
  form.append("image", file, "image"); // not the file's own name
  return posted("preview", form);
}

async function posted(address, body, headers = {}) {
  const response = await fetch(address, { method: "POST", headers: { ...headers, ...keyHeader() }, body }).catch(() => {
    throw unreachable();
  });
  if (!response.ok) throw failed(response.status, await response.json().catch(() => null));
  return response.blob();
}

/**
 * Ask for a draft.
 * @param {{frontal: File|null, lateral: File|null}} files
 * @param {Object<string, string>} options empty strings take the bundle's defaults
 * @param {{onUpload: (share: number) => void, onEvent: (event: {event: string, data: any}) => void, signal: AbortSignal}} hooks
 */
export function requestDraft(files, options, { onUpload, onEvent, signal }) {
  const form = new FormData();
  for (const [name, file] of Object.entries(files)) {
    if (file) form.append(name, file, name); // the file's own name may hold a patient's: it stays here
  }
  for (const [name, value] of Object.entries(options)) {
    if (value !== "") form.append(name, value);
  }
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot tell how far an upload is
    const parser = new EventParser();
    let read = 0;
    let last = null;
    request.open("POST", "report");
    for (const [name, value] of Object.entries(keyHeader())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onUpload(event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => onUpload(1));
    const take = () => {
      if (!request.getResponseHeader("Content-Type")?.startsWith("text/event-stream")) return;
      const from = read;
      read = request.responseText.length;
      try {
        for (const event of parser.feed(request.responseText.slice(from))) {
          last = event;
          onEvent(event);
        }
      } catch {
        reject(broken()); // before the abort's own word: the first one counts
        request.abort();
      }
    };
    request.addEventListener("progress", take);
    request.addEventListener("load", () => {
      take();
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
