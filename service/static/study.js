// Sorts dropped files into the two views of one study, and names those that are left out with the reason.

import { isDicom, readDicom } from "./dicom.js";
import { bytesOf, zipEntries, ZipError } from "./zip.js";

const MAX_FILES = 2_000;
const MAX_FILE_BYTES = 256 * 2 ** 20;
const HEAD_BYTES = 64 * 1024; // ViewPosition lies before that, unless private elements are large
const MAX_DEPTH = 8; // folders in folders
const VIEWS = ["frontal", "lateral"];
const CLUTTER = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i; // written by operating systems
const SIGNATURES = { png: [0x89, 0x50, 0x4e, 0x47], jpeg: [0xff, 0xd8, 0xff], zip: [0x50, 0x4b, 3, 4] };
const byName = new Intl.Collator("en", { numeric: true });

/**
 * The files and folders of a drop, to be called during its event: sources {name, size, head, file, original}, and folders
 * {name, folder}.
 */
export function droppedSources(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return fileSources([...transfer.files]);
  return entries.map((entry) => ({ name: entry.name, folder: entry }));
}

export const fileSources = (files) => files.map((file) => fileSource(file, file.name));

const fileSource = (file, name) => ({
  name,
  size: file.size,
  original: file,
  head: (count) => bytesOf(file.slice(0, count)),
  file: async () => file,
});

/** The sources with the files of the folders in their place. */
export async function sourcesIn(sources) {
  const files = [];
  for (const source of sources) {
    if (source.folder) await walk(source.folder, files, 0);
    else files.push(source);
  }
  return files;
}

async function walk(entry, files, depth) {
  if (depth > MAX_DEPTH || files.length > MAX_FILES) return;
  if (entry.isFile) {
    const name = entry.fullPath.slice(1);
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    files.push(file ? fileSource(file, name) : { name, head: () => Promise.reject(new Error("unreadable")) });
    return;
  }
  const reader = entry.createReader();
  const children = [];
  for (;;) {
    const batch = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([]))); // at most 100
    if (batch.length === 0) break;
    children.push(...batch);
  }
  for (const child of children.sort((a, b) => byName.compare(a.name, b.name))) await walk(child, files, depth + 1);
}

/** The view in the DICOM header of a source; null if there is none. */
export async function viewOf(source) {
  const head = await source.head(HEAD_BYTES);
  return isDicom(head) ? readDicom(head).view : null;
}

/**
 * Choose the images of the newest study in the files.
 * @returns {Promise<{frontal: File|null, lateral: File|null, left: {name: string, reason: string, value: string}[]}>} `reason` is
 *   the end of a key `left.…` of the dictionary
 */
export async function readStudy(sources) {
  const left = [];
  const leave = ({ name }, reason, value = "") => left.push({ name, reason, value });
  const images = await readImages(sources, leave);
  const chosen = chooseViews(images, leave);
  for (const view of VIEWS) {
    const image = chosen[view];
    chosen[view] = image ? await image.file().catch((error) => leave(image, reasonOf(error)) && null) : null;
  }
  return { ...chosen, left };
}

/** The images among the sources, and in their archives, each with its header if it is DICOM. */
async function readImages(sources, leave) {
  const images = [];
  const queue = sources.map((source) => ({ source, isInArchive: false }));
  for (let read = 0; queue.length; ) {
    const { source, isInArchive } = queue.shift();
    if (CLUTTER.test(source.name)) continue;
    if (++read > MAX_FILES) leave(source, "many", MAX_FILES.toLocaleString());
    else {
      try {
        const head = await source.head(HEAD_BYTES);
        const kind = kindOf(head);
        if (kind === "zip" && isInArchive) leave(source, "archive");
        else if (kind === "zip") {
          const entries = await zipEntries(await source.file(), MAX_FILES + 1);
          queue.unshift(...entries.map((entry) => ({ source: entry, isInArchive: true })));
        } else if (kind === null) leave(source, "kind");
        else if (source.size > MAX_FILE_BYTES) leave(source, "large");
        else images.push(Object.assign(source, { header: kind === "dicom" ? readDicom(head) : null }));
      } catch (error) {
        leave(source, reasonOf(error));
      }
    }
  }
  return images.filter(({ header }) => !header?.isDirectory);
}

const reasonOf = (error) => (error instanceof ZipError ? error.reason : "unreadable");

function kindOf(head) {
  if (isDicom(head)) return "dicom";
  const found = Object.entries(SIGNATURES).find(([, bytes]) => bytes.every((byte, index) => head[index] === byte));
  return found ? found[0] : null;
}

function chooseViews(images, leave) {
  let rest = images.filter((image) => {
    const refused = image.header?.refused;
    if (refused) leave(image, ...refused);
    return !refused;
  });
  const keep = (isKept, reason, value = () => "") => {
    const kept = rest.filter(isKept);
    if (kept.length === 0) return;
    for (const image of rest) if (!isKept(image)) leave(image, reason, value(image));
    rest = kept;
  };
  keep(({ header }) => header?.isChest ?? true, "part", ({ header }) => header.bodyPart);
  if (rest.length > VIEWS.length) keep(({ header }) => header !== null, "files"); // pictures of a viewer on the same disc
  const studies = rest.filter(({ header }) => header?.study).sort((a, b) => byName.compare(b.header.studyAt, a.header.studyAt));
  if (studies.length) keep(({ header }) => !header?.study || header.study === studies[0].header.study, "study");
  keep(({ header }) => !header?.isCapture || header.view !== null, "capture"); // it may show a table or a text
  const chosen = { frontal: null, lateral: null };
  const newest = rest.filter(({ header }) => header?.view).sort(compareImages);
  for (const image of newest) {
    const { view } = image.header;
    if (chosen[view]) leave(image, "repeat");
    else chosen[view] = image;
  }
  const unknown = rest.filter(({ header }) => !header?.view);
  const free = VIEWS.filter((view) => !chosen[view]);
  if (unknown.length <= free.length) unknown.forEach((image, index) => (chosen[free[index]] = image)); // the view check corrects them
  else for (const image of unknown) leave(image, free.length ? "unknown" : "extra"); // which ones would be a guess
  return chosen;
}

/** Radiographs before secondary captures, then the newest first. */
const compareImages = ({ header: a }, { header: b }) =>
  a.isCapture - b.isCapture || byName.compare(b.takenAt, a.takenAt) || b.number - a.number;
