// Whether the service is ready, which bundle it serves, and what it offers.

import { health } from "./api.js";
import { count, problemWords, t } from "./i18n.js";

const POLL_MS = 30_000; // interval of health checks while the service is ready
const RETRY_MS = 2_000; // interval while it is not

export class ServiceState {
  ready = null; // last answer of /health; null while the service is not ready

  /** `onChange` is called after every check. */
  constructor(root, onChange) {
    this.line = root.getElementById("service");
    this.refine = root.getElementById("refine-choice");
    this.onChange = onChange;
  }

  async watch() {
    let delay = POLL_MS;
    try {
      this.ready = await health();
      this.#show("ready", this.#words());
    } catch (problem) {
      this.ready = null;
      const isLost = problem.code === "failed" || problem.code === "unreachable";
      this.#show(isLost ? "failed" : "loading", problem.code === "loading" ? t("loading") : t("error.both", problemWords(problem)));
      delay = RETRY_MS;
    }
    this.onChange();
    setTimeout(() => this.watch(), delay);
  }

  translate() {
    if (this.ready) this.#show("ready", this.#words());
  }

  #words() {
    const { bundle, cases, device } = this.ready;
    return t("ready", { name: bundle.name, cases: cases === null ? t("cases.none") : count("cases", cases), device });
  }

  #show(state, words) {
    this.line.dataset.state = state;
    if (this.line.textContent !== words) this.line.textContent = words; // announce only changes
    if (this.ready) this.refine.hidden = !this.ready.refine; // while the service is not ready, nothing moves
  }
}
