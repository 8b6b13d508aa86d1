// Zoom and pan of one view; the overlay moves with the image.

export const ZOOM_STEP = 1.25; // per key press or wheel notch
const MAX_SCALE = 8;
const DOUBLE_CLICK_SCALE = 2.5;
const PAN_STEP = 40; // pixels per arrow key
const PIXELS_PER_E = 100; // wheel pixels that zoom by a factor of e
const PIXELS_PER_LINE = 33; // for a wheel that reports lines

export class Film {
  #scale = 1;
  #shift = [0, 0]; // of the film's centre from the zone's centre, in pixels

  /** `film` fills `zone`; keys work when an element of the zone has the focus. */
  constructor(zone, film) {
    this.zone = zone;
    this.film = film;
    zone.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    zone.addEventListener("pointerdown", (event) => this.#drag(event));
    zone.addEventListener("keydown", (event) => this.#key(event));
  }

  reset() {
    this.#scale = 1;
    this.#moveTo([0, 0]);
  }

  /** Keep the film within the zone after the zone was resized. */
  fit() {
    this.#moveTo(this.#shift);
  }

  /** Zoom by a factor around `point`, given relative to the zone's centre. */
  zoom(factor, point = [0, 0]) {
    const scale = Math.min(MAX_SCALE, Math.max(1, this.#scale * factor));
    const ratio = scale / this.#scale;
    this.#scale = scale;
    this.#moveTo(this.#shift.map((shift, axis) => point[axis] - (point[axis] - shift) * ratio));
  }

  /** Move the film, at most to its edges. */
  #moveTo(shift) {
    const sides = [this.zone.clientWidth, this.zone.clientHeight];
    this.#shift = shift.map((value, axis) => {
      const limit = ((this.#scale - 1) * sides[axis]) / 2;
      return Math.min(limit, Math.max(-limit, value));
    });
    const zoomed = this.#scale > 1;
    this.zone.classList.toggle("zoomed", zoomed);
    this.film.style.transform = zoomed ? `translate(${this.#shift[0]}px, ${this.#shift[1]}px) scale(${this.#scale})` : "";
  }

  get isZoomed() {
    return this.#scale > 1;
  }

  get #filled() {
    return this.zone.classList.contains("filled");
  }

  /** A point of the screen relative to the zone's centre. */
  from([x, y]) {
    const box = this.zone.getBoundingClientRect();
    return [x - box.left - box.width / 2, y - box.top - box.height / 2];
  }

  /** The wheel zooms with Ctrl or two fingers, or if the image is zoomed already; else it scrolls the page. */
  #wheel(event) {
    if (!this.#filled || (!event.ctrlKey && this.#scale === 1)) return;
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * PIXELS_PER_LINE;
    const factor = Math.exp(-pixels / PIXELS_PER_E); // a trackpad sends many small deltas, a mouse few large ones
    this.zoom(Math.min(ZOOM_STEP, Math.max(1 / ZOOM_STEP, factor)), this.from([event.clientX, event.clientY]));
  }

  #drag(event) {
    if (this.#scale === 1 || event.button !== 0 || !event.isPrimary) return;
    const start = [event.clientX - this.#shift[0], event.clientY - this.#shift[1]];
    const move = (moved) => {
      if (this.zone.classList.contains("two-fingers")) this.zone.removeEventListener("pointermove", move);
      else this.#moveTo([moved.clientX - start[0], moved.clientY - start[1]]);
    };
    this.zone.setPointerCapture(event.pointerId);
    this.zone.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) {
      this.zone.addEventListener(end, () => this.zone.removeEventListener("pointermove", move), { once: true });
    }
    event.preventDefault();
  }

  #key(event) {
    const [x, y] = this.#shift;
    const targets = { ArrowLeft: [x + PAN_STEP, y], ArrowRight: [x - PAN_STEP, y], ArrowUp: [x, y + PAN_STEP], ArrowDown: [x, y - PAN_STEP] };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#filled) return;
    if (event.key in targets && this.#scale > 1) this.#moveTo(targets[event.key]);
    else if (!zoomedBy(event.key, [this])) return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Zoom or reset films by a key; returns whether the key does that. */
export function zoomedBy(key, films) {
  const factor = { "+": ZOOM_STEP, "=": ZOOM_STEP, "-": 1 / ZOOM_STEP }[key];
  if (factor === undefined && key !== "0") return false;
  for (const film of films) {
    if (factor === undefined) film.reset();
    else film.zoom(factor);
  }
  return true;
}

/** Zoom all films, `clicked` around the point of the screen and the others at its height; or reset them if one is zoomed. */
export function toggleZoom(films, clicked, point) {
  const isZoomed = films.some((film) => film.isZoomed);
  const [x, y] = clicked.from(point);
  for (const film of films) {
    if (isZoomed) film.reset();
    else film.zoom(DOUBLE_CLICK_SCALE, [film === clicked ? x : 0, y]);
  }
}
