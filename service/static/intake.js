// Takes files: chosen, dropped or pasted. One file fills one view; several files, a folder or a zip archive are a study.

import { element } from "./draw.js";
import { onLanguage, t } from "./i18n.js";
import { droppedSources, fileSources, readStudy, sourcesIn, viewOf } from "./study.js";

const NAMES = ["frontal", "lateral"];
const MAX_NAMES = 20; // listed for each reason
const ARCHIVE = /\.zip$/i;

export class Intake {
  #left = []; // files of the last study that were left out: {name, reason, value}
  #order = 0; // of the drops; an earlier one that is still being read is dropped

  /**
   * `views` receives the files; `root` has the list of files that were left out; `onBusy(true)` is called when reading begins,
   * `onBusy(false)` when it ends.
   */
  constructor(root, views, onBusy) {
    this.views = views;
    this.onBusy = onBusy;
    this.panel = root.getElementById("left");
    this.list = root.getElementById("left-list");
    root.getElementById("left-close").addEventListener("click", () => this.#forget());
    for (const name of NAMES) this.#bindZone(name, views.parts[name]);
    this.#bindPage();
    onLanguage(() => this.#drawLeft());
  }

  /** Read no more of the last study. */
  clear() {
    this.#order += 1;
    this.onBusy(false);
    this.#forget();
  }

  #forget() {
    this.#left = [];
    this.#drawLeft();
  }

  /** Take a zip archive of one study; resolves to whether its images are shown. */
  takeArchive(blob) {
    return this.#take(fileSources([new File([blob], "study.zip")]), null);
  }

  /** Take the images of one study, by view. */
  takeViews(files) {
    if (this.views.locked) return;
    this.clear();
    this.#show({ ...files, left: [] }, NAMES);
  }

  #bindZone(name, { input, zone }) {
    input.addEventListener("change", () => {
      this.#take(fileSources([...input.files]), name);
      input.value = ""; // so that the same file can be chosen again
    });
    for (const kind of ["dragenter", "dragover"]) {
      zone.addEventListener(kind, (event) => {
        event.preventDefault();
        zone.classList.add("over");
      });
    }
    for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.#take(droppedSources(event.dataTransfer), name);
    });
  }

  #bindPage() {
    const files = (event) => event.dataTransfer?.types.includes("Files"); // not text that is dragged into the editor
    window.addEventListener("dragover", (event) => files(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      this.#take(droppedSources(event.dataTransfer), null);
    });
    document.addEventListener("paste", (event) => {
      if (event.target.closest?.("textarea, input:not([type=file])")) return; // a text field handles the paste
      const pasted = [...(event.clipboardData?.files ?? [])];
      if (pasted.length === 0) return;
      event.preventDefault();
      this.#take(fileSources(pasted), null);
    });
  }

  /** @param {string|null} name view in which a single file belongs; null: by its header, else the first empty one */
  async #take(sources, name) {
    if (this.views.locked || sources.length === 0) return false;
    const order = ++this.#order;
    const isFile = sources.length === 1 && !sources[0].folder && !ARCHIVE.test(sources[0].name);
    if (isFile && name !== null) {
      this.onBusy(false);
      this.#show({ [name]: sources[0].original, left: [] }, [name]);
      return true;
    }
    this.onBusy(true);
    let study = { left: [] };
    try {
      study = isFile ? await this.#single(sources[0]) : await readStudy(await sourcesIn(sources));
    } finally {
      if (order === this.#order) this.onBusy(false);
    }
    if (order !== this.#order || this.views.locked) return false;
    const found = NAMES.filter((each) => study[each]);
    const isStudy = found.length > 0 || study.left.some(({ reason }) => reason === "unknown");
    this.#show(study, isFile || !isStudy ? found : NAMES); // a study replaces both views
    return found.length > 0;
  }

  async #single(source) {
    const view = (await viewOf(source).catch(() => null)) ?? this.#freeView();
    return { [view]: source.original, left: [] };
  }

  #show(study, views) {
    this.#left = study.left;
    this.#drawLeft();
    for (const view of views) this.views.set(view, study[view] ?? null);
  }

  #freeView() {
    return NAMES.find((name) => !this.views.files[name]) ?? "frontal";
  }

  /** List the files that were left out, by reason. */
  #drawLeft() {
    const reasons = new Map();
    for (const { name, reason, value } of this.#left) {
      const words = t(`left.${reason}`, { value });
      reasons.set(words, [...(reasons.get(words) ?? []), name]);
    }
    const lines = [...reasons].map(([words, names]) => {
      const shown = names.slice(0, MAX_NAMES).join(t("list"));
      const more = names.length > MAX_NAMES ? t("left.more", { number: names.length - MAX_NAMES }) : "";
      return element("li", {}, t("left.line", { reason: words, names: shown + more }));
    });
    this.panel.hidden = lines.length === 0;
    this.list.replaceChildren(element("p", {}, t("left.title", { number: this.#left.length })), element("ul", {}, ...lines));
  }
}
