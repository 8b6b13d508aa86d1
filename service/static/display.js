// Window and level of the images on the screen, as brightness and contrast in percent. The service receives the original files.

import { t } from "./i18n.js";

const GREY = 255;
const PIXELS_PER_E = 300; // of a drag that changes a value by a factor of e
const PRESETS = { // [level, width] in grey values of the picture
  original: [127.5, 255],
  lungs: [90, 160],
  mediastinum: [185, 150],
  bones: [140, 120],
};

export class DisplayWindow {
  /** Connect the controls of `root`, and drags on the images, with the look of the images. */
  constructor(root, views) {
    const find = (id) => root.getElementById(id);
    this.views = root.querySelector(".views");
    this.sliders = { brightness: find("brightness"), contrast: find("contrast") };
    this.invert = find("invert");
    this.values = find("window-values");
    for (const control of [...Object.values(this.sliders), this.invert]) control.addEventListener("input", () => this.#show());
    for (const button of root.querySelectorAll("[data-preset]")) button.addEventListener("click", () => this.#set(...PRESETS[button.dataset.preset]));
    find("display-reset").addEventListener("click", () => {
      this.invert.checked = false;
      this.#set(...PRESETS.original);
    });
    views.onWindow = (right, down) => this.#drag(right, down);
    this.#show();
  }

  translate() {
    this.#show();
  }

  /** Up makes brighter, left increases the contrast, as on a workstation: a lower level, a narrower window. */
  #drag(right, down) {
    const { brightness, contrast } = this.sliders;
    this.#change(brightness, brightness.value * Math.exp(-down / PIXELS_PER_E));
    this.#change(contrast, contrast.value * Math.exp(-right / PIXELS_PER_E));
    this.#show();
  }

  #set(level, width) {
    this.#change(this.sliders.brightness, (100 * GREY) / (2 * level)); // of the filters brightness, then contrast
    this.#change(this.sliders.contrast, (200 * level) / width);
    this.#show();
  }

  #change(slider, value) {
    slider.value = value; // the slider keeps it within its limits
  }

  #show() {
    const [brightness, contrast] = Object.values(this.sliders).map((slider) => slider.value / 100);
    this.views.style.setProperty("--brightness", brightness);
    this.views.style.setProperty("--contrast", contrast);
    this.views.style.setProperty("--invert", this.invert.checked ? 1 : 0);
    const [level, width] = [GREY / 2 / brightness, GREY / (brightness * contrast)];
    this.values.textContent = t("display.values", { width: Math.round(width), level: Math.round(level) });
  }
}
