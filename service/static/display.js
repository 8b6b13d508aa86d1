// Brightness, contrast and polarity of the images on the screen. The service receives the original files.

const SLIDERS = ["brightness", "contrast"];

/** Connect the controls of `root` with the images in `views`. */
export function bindDisplay(root, views) {
  const [brightness, contrast] = SLIDERS.map((name) => root.getElementById(name));
  const invert = root.getElementById("invert");
  const show = () => {
    for (const slider of [brightness, contrast]) views.style.setProperty(`--${slider.id}`, slider.value / 100);
    views.style.setProperty("--invert", invert.checked ? 1 : 0);
  };
  for (const control of [brightness, contrast, invert]) control.addEventListener("input", show);
  root.getElementById("display-reset").addEventListener("click", () => {
    brightness.value = contrast.value = 100;
    invert.checked = false;
    show();
  });
}
