// Zoom and pan of one view. What lies over the image moves with it.

export const STEP = 1.25; // of one key, one notch
const MOST = 8;
const NEAR = 2.5; // where a double click goes to
const PACE = 40; // pixels of an arrow key
const SMOOTH = 100; // pixels of the wheel that enlarge e times
const LINE = 33; // pixels, where it is told in lines

export class Film {
  #scale = 1;
  #shift = [0, 0]; // of the film's centre, in pixels of the zone

  /** `film` lies in `zone` and fills it; keys count while something in the zone has the focus. */
  constructor(zone, film) {
    this.zone = zone;
    this.film = film;
    zone.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    zone.addEventListener("dblclick", (event) => this.#toggle(event));
    zone.addEventListener("pointerdown", (event) => this.#drag(event));
    zone.addEventListener("keydown", (event) => this.#key(event));
  }

  reset() {
    this.#scale = 1;
    this.#place([0, 0]);
  }

  /** The zone has another size: no further than its edges again. */
  fit() {
    this.#place(this.#shift);
  }

  /** Enlarge by a factor; what lies at `point`, counted from the zone's centre, stays there. */
  zoom(factor, point = [0, 0]) {
    const scale = Math.min(MOST, Math.max(1, this.#scale * factor));
    const ratio = scale / this.#scale;
    this.#scale = scale;
    this.#place(this.#shift.map((shift, axis) => point[axis] - (point[axis] - shift) * ratio));
  }

  /** No further than the film's edges. */
  #place(shift) {
    const sides = [this.zone.clientWidth, this.zone.clientHeight];
    this.#shift = shift.map((value, axis) => {
      const most = ((this.#scale - 1) * sides[axis]) / 2;
      return Math.min(most, Math.max(-most, value));
    });
    const zoomed = this.#scale > 1;
    this.zone.classList.toggle("zoomed", zoomed);
    this.film.style.transform = zoomed ? `translate(${this.#shift[0]}px, ${this.#shift[1]}px) scale(${this.#scale})` : "";
  }

  get #filled() {
    return this.zone.classList.contains("filled");
  }

  #toggle(event) {
    if (this.#scale > 1) this.reset();
    else if (this.#filled) this.zoom(NEAR, this.#from(event));
  }

  #from(event) {
    const box = this.zone.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  /** The wheel scrolls the page until the image is enlarged; with Ctrl, or two fingers, it enlarges. */
  #wheel(event) {
    if (!this.#filled || (!event.ctrlKey && this.#scale === 1)) return;
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * LINE;
    const factor = Math.exp(-pixels / SMOOTH); // a trackpad sends many small turns, a mouse few large ones
    this.zoom(Math.min(STEP, Math.max(1 / STEP, factor)), this.#from(event));
  }

  #drag(event) {
    if (this.#scale === 1 || event.button !== 0) return;
    const start = [event.clientX - this.#shift[0], event.clientY - this.#shift[1]];
    const move = (moved) => this.#place([moved.clientX - start[0], moved.clientY - start[1]]);
    this.zone.setPointerCapture(event.pointerId);
    this.zone.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) {
      this.zone.addEventListener(end, () => this.zone.removeEventListener("pointermove", move), { once: true });
    }
    event.preventDefault();
  }

  #key(event) {
    const [x, y] = this.#shift;
    const ways = { ArrowLeft: [x + PACE, y], ArrowRight: [x - PACE, y], ArrowUp: [x, y + PACE], ArrowDown: [x, y - PACE] };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#filled) return;
    if (event.key in ways && this.#scale > 1) this.#place(ways[event.key]);
    else if (!zoomedBy(event.key, [this])) return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Let a key enlarge, reduce or reset films; whether it does. */
export function zoomedBy(key, films) {
  const factor = { "+": STEP, "=": STEP, "-": 1 / STEP }[key];
  if (factor === undefined && key !== "0") return false;
  for (const film of films) {
    if (factor === undefined) film.reset();
    else film.zoom(factor);
  }
  return true;
}
