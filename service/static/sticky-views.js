// On a narrow screen the images scroll out of sight. While a sentence is highlighted, they stick to the top with the legend.

/** Make `pinned`, the images and their legend, sticky when it has scrolled past the top of the screen. */
export function bindStickyViews(pinned) {
  const space = pinned.parentElement;
  const isStuck = () => getComputedStyle(pinned).position === "fixed";
  new IntersectionObserver(([{ isIntersecting, boundingClientRect }]) => {
    document.body.classList.toggle("away", !isIntersecting && boundingClientRect.top < 0);
  }).observe(space);
  new ResizeObserver(() => {
    if (isStuck()) document.body.style.setProperty("--pinned-height", `${pinned.offsetHeight}px`);
    else space.style.setProperty("--views-height", `${pinned.getBoundingClientRect().height}px`); // keeps their space
  }).observe(pinned);
}
