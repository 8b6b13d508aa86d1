// On a narrow screen the images scroll out of sight. While a sentence is highlighted, they stick to the top.

/** Make `views` sticky when `below`, the element under them, has scrolled past the top of the screen. */
export function bindStickyViews(views, below) {
  new IntersectionObserver(([{ isIntersecting, boundingClientRect }]) => {
    const away = !isIntersecting && boundingClientRect.top < 0;
    if (away) views.parentElement.style.setProperty("--views-height", `${views.offsetHeight}px`); // keeps their space
    document.body.classList.toggle("away", away);
  }).observe(below);
}
