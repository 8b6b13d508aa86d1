// The two drop zones: choose, drop, paste, preview, swap, remove. Holds the files; tells `onChange` of every change.
// Over each image lies a canvas for what the model looked at; both are one film, to enlarge and to move.

import { drawn } from "./api.js";
import { Film, zoomedBy } from "./film.js";
import { onLanguage, problemWords, t } from "./i18n.js";
import { drawHeat, fit } from "./overlay.js";

const NAMES = ["frontal", "lateral"];

export class Views {
  constructor(root, onChange) {
    this.onChange = onChange;
    this.files = { frontal: null, lateral: null };
    this.parts = {};
    for (const name of NAMES) this.#bind(name, root.querySelector(`[data-view="${name}"]`));
    this.#keepStrayDropsOffTheBrowser();
    document.addEventListener("paste", (event) => this.#paste(event));
    onLanguage(() => NAMES.forEach((name) => this.showError(name, this.parts[name].problem)));
    new ResizeObserver(() => {
      for (const name of NAMES) {
        this.#place(name);
        this.parts[name].film.fit();
      }
    }).observe(this.parts.frontal.zone);
  }

  /** Views that have a file. */
  get names() {
    return NAMES.filter((name) => this.files[name]);
  }

  get count() {
    return this.names.length;
  }

  set(name, file) {
    this.files[name] = file;
    this.#draw(name);
    this.onChange(name);
  }

  swap() {
    const { frontal, lateral } = this.files;
    this.set("frontal", lateral);
    this.set("lateral", frontal);
  }

  clear() {
    for (const name of NAMES) this.set(name, null);
  }

  /** Say what is wrong with a view below its zone; null takes the message away. */
  showError(name, problem) {
    const { view, input, error } = this.parts[name];
    this.parts[name].problem = problem;
    view.classList.toggle("wrong", Boolean(problem));
    input.setAttribute("aria-invalid", problem ? "true" : "false");
    error.textContent = problem ? problemWords(problem).detail : "";
    error.hidden = !problem;
  }

  /**
   * Lay attention over the images, or take it away.
   * @param {Object<string, number[][]>|null} patches by the view that an image was sent as; null for none
   */
  showAttention(patches) {
    const weights = Object.values(patches ?? {}).flat(2);
    const range = { least: Math.min(...weights), most: Math.max(...weights) };
    for (const name of NAMES) {
      const grid = this.files[name] ? patches?.[name] : undefined;
      const { heat } = this.parts[name];
      heat.hidden = !grid || range.most <= range.least;
      if (heat.hidden) continue;
      this.#place(name);
      drawHeat(heat, grid, range);
    }
  }

  /** Let a key enlarge, reduce or reset both images; whether it does. */
  zoomedBy(key) {
    return zoomedBy(key, NAMES.filter((name) => this.files[name]).map((name) => this.parts[name].film));
  }

  /** Ask once more for pictures that were not to be had: the service was not ready, or wanted a key. */
  drawAgain() {
    for (const name of this.names) if (!this.parts[name].undrawn.hidden) this.#askForPicture(name);
  }

  /** The preview is as wide and high as the file says; one that no browser draws is taken for a square. */
  #place(name) {
    const { heat, zone, image } = this.parts[name];
    const drawn = !image.hidden && image.naturalWidth > 0;
    fit(heat, zone, drawn ? image.naturalWidth : 1, drawn ? image.naturalHeight : 1);
  }

  lock(locked) {
    for (const name of NAMES) {
      this.parts[name].input.disabled = locked;
      this.parts[name].remove.disabled = locked;
    }
    this.locked = locked;
  }

  #bind(name, view) {
    const find = (selector) => view.querySelector(selector);
    const parts = {
      view,
      zone: find(".zone"),
      input: find("input"),
      image: find("img"),
      heat: find("canvas"),
      film: new Film(find(".zone"), find(".film")),
      undrawn: find(".undrawn"),
      remove: find(".remove"),
      error: find(".field-error"),
      problem: null, // what the error tells
      own: true, // whether the picture is the file itself, and not one that the service drew of it
    };
    this.parts[name] = parts;
    parts.input.addEventListener("change", () => {
      this.#take([...parts.input.files], name);
      parts.input.value = ""; // so that the same file can be chosen again
    });
    parts.remove.addEventListener("click", () => {
      this.set(name, null);
      parts.input.focus();
    });
    parts.image.addEventListener("load", () => {
      if (parts.own) brighten(parts.image);
      this.#place(name); // an overlay that is shown already
    });
    parts.image.addEventListener("error", () => this.#askForPicture(name));
    for (const kind of ["dragenter", "dragover"]) {
      parts.zone.addEventListener(kind, (event) => {
        event.preventDefault();
        parts.zone.classList.add("over");
      });
    }
    for (const kind of ["dragleave", "drop"]) {
      parts.zone.addEventListener(kind, () => parts.zone.classList.remove("over"));
    }
    parts.zone.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.#take([...event.dataTransfer.files], name);
    });
  }

  /** One file goes where it was dropped; two fill both views in their order. */
  #take(files, name) {
    if (this.locked || files.length === 0) return;
    if (files.length === 1) {
      this.set(name, files[0]);
    } else {
      this.set("frontal", files[0]);
      this.set("lateral", files[1]);
    }
  }

  #paste(event) {
    if (event.target.closest?.("textarea, input:not([type=file])")) return; // text is pasted there
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    this.#take(files, NAMES.find((name) => !this.files[name]) ?? "frontal");
  }

  #keepStrayDropsOffTheBrowser() {
    const files = (event) => event.dataTransfer?.types.includes("Files"); // not text on its way to the editor
    window.addEventListener("dragover", (event) => files(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      this.#take([...event.dataTransfer.files], NAMES.find((name) => !this.files[name]) ?? "frontal");
    });
  }

  /** No browser draws DICOM: the service does, and says at once what it cannot read. */
  async #askForPicture(name) {
    const { image, undrawn } = this.parts[name];
    const file = this.files[name];
    const say = (key) => {
      undrawn.dataset.i18n = key;
      undrawn.textContent = t(key);
    };
    image.hidden = true;
    undrawn.hidden = false;
    say("opening");
    try {
      const picture = await drawn(file);
      if (this.files[name] !== file) return;
      this.#setImage(name, picture);
      undrawn.hidden = true;
    } catch (problem) {
      if (this.files[name] !== file) return;
      undrawn.hidden = problem.field !== null; // then it was refused, and there is nothing to wait for
      if (problem.field) this.showError(name, problem);
      else say("undrawn");
    }
  }

  #setImage(name, blob) {
    const { image } = this.parts[name];
    if (image.src) URL.revokeObjectURL(image.src);
    this.parts[name].own = blob === this.files[name];
    image.hidden = !blob;
    if (blob) image.src = URL.createObjectURL(blob);
    else image.removeAttribute("src");
  }

  #draw(name) {
    const { zone, image, undrawn, remove, heat, film } = this.parts[name];
    const file = this.files[name];
    image.style.removeProperty("--spread");
    film.reset();
    undrawn.hidden = true;
    zone.classList.toggle("filled", Boolean(file));
    remove.hidden = !file;
    heat.hidden = true;
    this.#setImage(name, file);
    this.showError(name, null);
  }
}

/** Browsers show 12-bit data in a 16-bit file almost black. The service spreads min to max; so does this preview. */
function brighten(image) {
  const side = 64;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side).data;
  let most = 0;
  for (let i = 0; i < pixels.length; i += 4) most = Math.max(most, pixels[i], pixels[i + 1], pixels[i + 2]);
  if (most > 0 && most < 96) image.style.setProperty("--spread", (255 / most).toFixed(2));
}
