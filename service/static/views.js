// The two views: preview, swap, remove. Holds the files; calls `onChange` on every change, `onRefusal` when the service refuses one.
// Each image has a canvas for a map over it; both form one film, which can be zoomed and moved.

import { requestPreview } from "./api.js";
import { Film, toggleZoom, zoomedBy } from "./film.js";
import { bindGestures } from "./gestures.js";
import { onLanguage, problemWords, t } from "./i18n.js";
import { drawMap, fit } from "./overlay.js";

const NAMES = ["frontal", "lateral"];

export class Views {
  constructor(root, onChange, onRefusal) {
    this.onRefusal = onRefusal;
    this.onChange = onChange;
    this.onWindow = () => {}; // called when a drag changes window and level, with the pixels to the right and down
    this.files = { frontal: null, lateral: null };
    this.priorFilms = []; // of the earlier study, zoomed with the current images
    this.parts = {};
    for (const name of NAMES) this.#bind(name, root.querySelector(`[data-view="${name}"]`));
    onLanguage(() => NAMES.forEach((name) => this.showError(name, this.parts[name].problem)));
    new ResizeObserver(() => {
      for (const name of NAMES) this.#alignOverlay(name);
      for (const film of this.films) film.fit();
    }).observe(this.parts.frontal.zone);
  }

  /** Views that have a file. */
  get names() {
    return NAMES.filter((name) => this.files[name]);
  }

  get count() {
    return this.names.length;
  }

  /** Whether the service refuses one of the files. */
  get refused() {
    return this.names.some((name) => this.parts[name].problem !== null);
  }

  set(name, file) {
    this.files[name] = file;
    this.#draw(name);
    this.onChange(name);
  }

  swap() {
    this.exchange();
    this.onChange();
  }

  /** Exchange the images without a call of `onChange`. */
  exchange() {
    const { frontal, lateral } = this.files;
    Object.assign(this.files, { frontal: lateral, lateral: frontal });
    for (const name of NAMES) this.#draw(name);
  }

  clear() {
    for (const name of NAMES) this.set(name, null);
  }

  /** Show an error below the zone of a view; null removes it. */
  showError(name, problem) {
    const { view, input, error } = this.parts[name];
    this.parts[name].problem = problem;
    view.classList.toggle("wrong", Boolean(problem));
    input.setAttribute("aria-invalid", problem ? "true" : "false");
    error.textContent = problem ? problemWords(problem).detail : "";
    error.hidden = !problem;
  }

  /**
   * Show a map over the images; null removes it.
   * @param {Object<string, number[][]>|null} patches by the view in which an image was sent
   * @param {function|null} colours as of `drawMap`; null: nothing to see
   */
  showMap(patches, colours) {
    for (const name of NAMES) {
      const grid = this.files[name] ? patches?.[name] : undefined;
      const { heat } = this.parts[name];
      heat.hidden = !grid || !colours;
      if (heat.hidden) continue;
      this.#alignOverlay(name);
      drawMap(heat, grid, colours);
    }
  }

  /** Zoom or reset both images by a key; returns whether the key does that. */
  zoomedBy(key) {
    return zoomedBy(key, this.films);
  }

  get films() {
    return [...this.names.map((name) => this.parts[name].film), ...this.priorFilms];
  }

  /** Request failed previews again: the service was not ready, or required a key. */
  retryPreviews() {
    for (const name of this.names) if (!this.parts[name].undrawn.hidden) this.#requestPreview(name);
  }

  /** Align the overlay with the image; an image that is not drawn counts as a square. */
  #alignOverlay(name) {
    const { heat, zone, image } = this.parts[name];
    const visible = !image.hidden && image.naturalWidth > 0;
    fit(heat, zone, visible ? image.naturalWidth : 1, visible ? image.naturalHeight : 1);
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
      problem: null, // shown in `error`
      isOriginal: true, // whether the picture is the file itself, not a preview by the service
    };
    this.parts[name] = parts;
    const { film, zone } = parts;
    zone.addEventListener("dblclick", ({ clientX, clientY }) => this.files[name] && toggleZoom(this.films, film, [clientX, clientY]));
    bindGestures(zone, {
      drag: (right, down) => this.onWindow(right, down),
      pinch: (factor, point) => film.zoom(factor, film.from(point)),
    });
    parts.remove.addEventListener("click", () => {
      this.set(name, null);
      parts.input.focus();
    });
    parts.image.addEventListener("load", () => {
      if (parts.isOriginal) brighten(parts.image);
      this.#alignOverlay(name); // the overlay may be visible already
    });
    parts.image.addEventListener("error", () => this.#requestPreview(name));
  }

  /** Browsers cannot draw DICOM: request a preview, which also reports unreadable files at once. */
  async #requestPreview(name) {
    const { image, undrawn } = this.parts[name];
    const file = this.files[name];
    const showText = (key) => {
      undrawn.dataset.i18n = key;
      undrawn.textContent = t(key);
    };
    image.hidden = true;
    undrawn.hidden = false;
    showText("opening");
    try {
      const picture = await requestPreview(file);
      if (this.files[name] !== file) return;
      this.#setImage(name, picture);
      undrawn.hidden = true;
    } catch (problem) {
      if (this.files[name] !== file) return;
      undrawn.hidden = problem.field !== null; // the file was refused: show only the error
      if (problem.field) this.#refuse(name, problem);
      else showText("undrawn");
    }
  }

  #refuse(name, problem) {
    this.showError(name, problem);
    this.onRefusal();
  }

  #setImage(name, blob) {
    const { image } = this.parts[name];
    if (image.src) URL.revokeObjectURL(image.src);
    this.parts[name].isOriginal = blob === this.files[name];
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

/** Browsers show 12-bit data in a 16-bit file almost black. Stretch the grey range, as the service does. */
function brighten(image) {
  const side = 64;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side).data;
  let max = 0;
  for (let i = 0; i < pixels.length; i += 4) max = Math.max(max, pixels[i], pixels[i + 1], pixels[i + 2]);
  if (max > 0 && max < 96) image.style.setProperty("--spread", (255 / max).toFixed(2));
}
