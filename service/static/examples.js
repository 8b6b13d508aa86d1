// The panel of example studies: radiographs that the service fetched, and drawings. One click fills both views.

import { fetchPicture, Problem, requestExamples } from "./api.js";
import { element } from "./draw.js";
import { onLanguage, t } from "./i18n.js";

export class Examples {
  #found = [];
  #order = 0; // of the clicks; an earlier one that is still being fetched is dropped

  /** `take` receives the images of the chosen example by view; `onProblem` is called when one cannot be fetched. */
  constructor(root, take, onProblem) {
    Object.assign(this, { take, onProblem });
    this.button = root.getElementById("examples-button");
    this.list = root.getElementById("examples-list");
    onLanguage(() => this.#draw());
  }

  async load() {
    this.#found = await requestExamples();
    this.button.hidden = this.#found.length === 0;
    this.#draw();
  }

  #draw() {
    const groups = ["study", "drawing"].map((kind) => this.#found.filter((example) => example.kind === kind));
    this.list.replaceChildren(...groups.filter((group) => group.length).flatMap((group) => this.#drawGroup(group)));
  }

  #drawGroup(group) {
    const [{ kind, attribution, licence, licence_url: address }] = group;
    const id = `examples-${kind}`;
    const line = element("p", { className: "presets" }, element("strong", { id }, t(`examples.${kind}`)), ...group.map((each) => this.#button(each)));
    line.setAttribute("role", "group");
    line.setAttribute("aria-labelledby", id);
    const note = element("p", { className: "legend" }, t(`examples.${kind}.note`));
    if (kind === "study") {
      note.append(` ${attribution}${t("comma")}`, link(address, licence), t("examples.sources"));
      group.forEach(({ id: study, source_url: source }, index) => note.append(index ? t("list") : "", link(source, study)));
    }
    return [line, note];
  }

  #button(example) {
    const button = element("button", { type: "button", className: "quiet", title: example.id }, labelWords(example.label));
    button.addEventListener("click", () => this.#choose(example));
    return button;
  }

  async #choose({ images }) {
    const order = ++this.#order;
    const views = Object.keys(images);
    const files = await Promise.all(views.map((view) => fetchPicture(images[view])));
    if (order !== this.#order) return;
    if (files.includes(null)) this.onProblem(new Problem({ code: "example.missing" }));
    else this.take(Object.fromEntries(views.map((view, index) => [view, files[index]])));
  }
}

function labelWords(label) {
  const words = t(`example.${label}`);
  return words === `example.${label}` ? label : words;
}

const link = (address, words) =>
  address
    ? element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, words, element("span", { className: "unseen" }, t("source.tab")))
    : words;
