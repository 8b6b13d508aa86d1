// Talks to the service. Errors arrive as problem+json and leave as Problem objects in plain words.

import { storedKey } from "./key.js";

export class Problem extends Error {
  constructor({ title, detail, code = "unknown", field = null, status = 0 }) {
    super(detail);
    Object.assign(this, { title, detail, code, field, status });
  }
}

const UNREACHABLE = {
  title: "The service cannot be reached",
  detail: "Check that it is still running and that this computer is on its network, then try again.",
  code: "unreachable",
};

/** Health of the service: its answer when ready, a Problem thrown while it is not. */
export async function health() {
  let response;
  try {
    response = await fetch("health", { cache: "no-store" });
  } catch {
    throw new Problem(UNREACHABLE);
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem({ title: "Not ready", detail: "The service is not ready.", ...body });
  return body;
}

/**
 * Ask for a draft.
 * @param {{frontal: File|null, lateral: File|null}} files
 * @param {{top_k: string, beam_size: string}} options empty strings take the bundle's defaults
 * @param {{onUpload: (share: number) => void, signal: AbortSignal}} hooks
 */
export function requestDraft(files, options, { onUpload, signal }) {
  const form = new FormData();
  for (const [name, file] of Object.entries(files)) {
    if (file) form.append(name, file, name); // the file's own name may hold a patient's: it stays here
  }
  for (const [name, value] of Object.entries(options)) {
    if (value !== "") form.append(name, value);
  }
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot tell how far an upload is
    request.open("POST", "report");
    request.responseType = "json";
    if (storedKey()) request.setRequestHeader("Authorization", `Bearer ${storedKey()}`);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onUpload(event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => onUpload(1));
    request.addEventListener("load", () => {
      if (request.status === 200 && request.response) resolve(request.response);
      else {
        const fallback = { title: "The service failed", detail: `It answered ${request.status}. Try again.` };
        reject(new Problem({ ...fallback, ...(request.response ?? {}), status: request.status }));
      }
    });
    request.addEventListener("error", () => reject(new Problem(UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
