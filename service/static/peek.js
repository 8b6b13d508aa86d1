// On a narrow screen the images scroll out of sight. While a sentence is looked at they come along at the top.

/** Let `views` come along as soon as `below`, what lies under them, has left the screen at its top. */
export function bindPeek(views, below) {
  new IntersectionObserver(([{ isIntersecting, boundingClientRect }]) => {
    const away = !isIntersecting && boundingClientRect.top < 0;
    if (away) views.parentElement.style.setProperty("--views-height", `${views.offsetHeight}px`); // their place stays
    document.body.classList.toggle("away", away);
  }).observe(below);
}
