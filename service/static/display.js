// Brightness, contrast and polarity of the images on the screen. The service reads them as they are.

const SLIDERS = ["brightness", "contrast"];

/** Let the controls of `root` set how the images in `views` are shown. */
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
