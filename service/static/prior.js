// The newest earlier study of the patient next to the images, for the reader's eyes: no draft uses it.

import { requestPreview, requestPrior, requestStudy } from "./api.js";
import { element } from "./draw.js";
import { Film, toggleZoom } from "./film.js";
import { bindGestures } from "./gestures.js";
import { onLanguage, problemWords, t } from "./i18n.js";
import { zipEntries } from "./zip.js";

const NAMES = ["frontal", "lateral"];

export class Prior {
  #order = 0; // of the searches; the result of an earlier one is dropped
  #words = null; // returns the line above the images, in the current language
  #images = []; // {name, image, film, date}

  /** `views` are the current images, with which these are zoomed. */
  constructor(root, views) {
    this.views = views;
    this.panel = root.getElementById("prior");
    this.line = root.getElementById("prior-words");
    this.list = root.getElementById("prior-images");
    this.toggle = root.getElementById("prior-toggle");
    this.toggle.addEventListener("click", () => this.#draw(this.list.hidden));
    onLanguage(() => this.#draw(!this.list.hidden));
  }

  clear() {
    this.#order += 1;
    this.#show(null, []);
  }

  /** Search for the study before this one, and show its images. */
  async show(uid) {
    this.clear();
    const order = this.#order;
    const say = (words, images = []) => order === this.#order && this.#show(words, images);
    say(() => t("prior.searching"));
    try {
      const { status, prior, study_date: current } = await requestPrior(uid);
      if (status === "off") return say(null);
      if (prior === null) return say(() => t(`prior.${status}`));
      const { study_date: date } = prior;
      say(() => t("prior.reading", { date }));
      const pictures = await this.#pictures(prior.study_instance_uid);
      return say(() => t("prior.found", { date, current }), pictures.map(([name, blob]) => this.#image(name, blob, date)));
    } catch (problem) {
      return say(() => t("prior.failed", { title: problemWords(problem).title ?? "" }));
    }
  }

  /** [view, picture] of each image of a study. */
  async #pictures(uid) {
    const files = await zipEntries(await requestStudy(uid), NAMES.length);
    return Promise.all(files.map(async (entry) => [entry.name.split(".")[0], await requestPreview(await entry.file())]));
  }

  #image(name, blob, date) {
    const image = element("img");
    const film = element("div", { className: "film" }, image);
    const zone = element("div", { className: "zone filled" }, film);
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.src = URL.createObjectURL(blob);
    const made = new Film(zone, film);
    zone.addEventListener("dblclick", ({ clientX, clientY }) => toggleZoom(this.views.films, made, [clientX, clientY]));
    bindGestures(zone, {
      drag: (right, down) => this.views.onWindow(right, down),
      pinch: (factor, point) => made.zoom(factor, made.from(point)),
    });
    return { name, zone, image, film: made, date };
  }

  #show(words, images) {
    this.#words = words;
    this.#images = images;
    this.views.priorFilms = images.map(({ film }) => film);
    this.list.replaceChildren(...images.map(({ name, zone }) => element("div", { className: `of-${name}` }, zone)));
    this.#draw(true);
  }

  #draw(isOpen) {
    this.panel.hidden = this.#words === null;
    this.line.textContent = this.#words?.() ?? "";
    for (const { name, image, date } of this.#images) image.alt = t("prior.alt", { view: t(name), date });
    this.list.hidden = !isOpen;
    this.toggle.hidden = this.#images.length === 0;
    this.toggle.setAttribute("aria-expanded", isOpen ? "true" : "false");
    this.toggle.textContent = t(isOpen ? "prior.hide" : "prior.show");
  }
}
