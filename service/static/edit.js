// The editor of the findings. The model's draft is kept, so that edits can be undone.

export class Editor {
  /** `onChange` is called when editing begins, ends or is undone, `onInput` with the text while it is typed. */
  constructor(root, onChange, onInput) {
    this.onChange = onChange;
    this.area = root.getElementById("edit-area");
    this.box = root.getElementById("editor");
    this.draft = "";
    this.text = null; // the edited text; null if unchanged
    this.exportedText = null; // the text that was last copied or saved
    root.getElementById("edit-done").addEventListener("click", () => this.finish());
    root.getElementById("edit-undo").addEventListener("click", () => this.undo());
    this.area.addEventListener("input", () => {
      this.#grow();
      onInput(this.area.value.trim());
    });
  }

  get open() {
    return !this.box.hidden;
  }

  get edited() {
    return this.text !== null;
  }

  /** The current findings: the edited text, else the draft. */
  get findings() {
    return this.text ?? this.draft;
  }

  /** Whether there is edited text that was neither copied nor saved. */
  get unsaved() {
    const text = this.open ? this.area.value.trim() : this.findings;
    return text !== this.draft && text !== this.exportedText;
  }

  /** Record that this text was copied or saved. */
  markExported(text) {
    this.exportedText = text;
  }

  reset(draft) {
    this.draft = draft;
    this.text = this.exportedText = null;
    this.box.hidden = true;
  }

  begin() {
    if (this.open) {
      this.area.focus(); // keep typed text
      return;
    }
    this.area.value = this.findings;
    this.box.hidden = false;
    this.#grow();
    this.area.focus();
    this.onChange();
  }

  finish() {
    this.close();
    this.onChange();
  }

  /** End editing and keep the text, without calling `onChange`. */
  close() {
    if (!this.open) return;
    const text = this.area.value.trim();
    this.text = text === this.draft ? null : text;
    this.box.hidden = true;
  }

  undo() {
    this.text = null;
    this.box.hidden = true;
    this.onChange();
  }

  #grow() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight + 2}px`;
  }
}
