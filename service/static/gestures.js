// Gestures on a view: the right button or two fingers change the window, two fingers that part or meet zoom.

const DECIDED_PIXELS = 10; // movement after which two fingers either drag or pinch

/**
 * @param {HTMLElement} zone
 * @param {{drag: function(number, number), pinch: function(number, number[])}} handlers drag: pixels to the right and down since the
 *   last call; pinch: zoom factor since the last call, and the point between the fingers on the screen
 */
export function bindGestures(zone, { drag, pinch }) {
  const isFilled = () => zone.classList.contains("filled");
  zone.addEventListener("contextmenu", (event) => isFilled() && event.preventDefault()); // some systems open it before the drag
  zone.addEventListener("pointerdown", (event) => {
    if (event.button !== 2 || !isFilled()) return;
    zone.setPointerCapture(event.pointerId);
    const move = ({ movementX, movementY }) => drag(movementX, movementY);
    zone.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) zone.addEventListener(end, () => zone.removeEventListener("pointermove", move), { once: true });
  });
  bindTwoFingers(zone, isFilled, drag, pinch);
}

function bindTwoFingers(zone, isFilled, drag, pinch) {
  let [first, last, gesture] = [null, null, null];
  zone.addEventListener(
    "touchstart",
    (event) => {
      if (event.touches.length !== 2 || !isFilled()) return;
      event.preventDefault(); // the page neither scrolls nor zooms
      [first, gesture] = [measured(event.touches), null];
      last = first;
      zone.classList.add("two-fingers");
    },
    { passive: false },
  );
  zone.addEventListener(
    "touchmove",
    (event) => {
      if (!last || event.touches.length !== 2) return;
      event.preventDefault();
      const now = measured(event.touches);
      const parted = Math.abs(now.distance - first.distance);
      const moved = Math.hypot(now.x - first.x, now.y - first.y);
      if (!gesture && Math.max(parted, moved) > DECIDED_PIXELS) gesture = parted > moved ? "pinch" : "drag";
      if (gesture === "drag") drag(now.x - last.x, now.y - last.y);
      else if (gesture === "pinch") pinch(now.distance / last.distance, [now.x, now.y]);
      last = now;
    },
    { passive: false },
  );
  for (const end of ["touchend", "touchcancel"]) {
    zone.addEventListener(end, (event) => {
      if (event.touches.length < 2) last = null;
      if (event.touches.length === 0) zone.classList.remove("two-fingers");
    });
  }
}

function measured([one, other]) {
  const distance = Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
  return { x: (one.clientX + other.clientX) / 2, y: (one.clientY + other.clientY) / 2, distance: Math.max(distance, 1) };
}
