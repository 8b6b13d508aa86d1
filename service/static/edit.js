// The reader's own words in the place of the draft. The model's draft is kept beside, to go back to.

export class Editor {
  /** `onChange` is told whenever editing begins, ends or is undone. */
  constructor(root, onChange) {
    this.onChange = onChange;
    this.area = root.getElementById("edit-area");
    this.box = root.getElementById("editor");
    this.draft = "";
    this.text = null; // what the reader made of it; null: nothing
    this.taken = null; // what was last copied or saved
    root.getElementById("edit-done").addEventListener("click", () => this.finish());
    root.getElementById("edit-undo").addEventListener("click", () => this.undo());
    this.area.addEventListener("input", () => this.#grow());
  }

  get open() {
    return !this.box.hidden;
  }

  get edited() {
    return this.text !== null;
  }

  /** What stands: the reader's words, or the draft. */
  get findings() {
    return this.text ?? this.draft;
  }

  /** Whether the reader wrote what is nowhere else. */
  get unsaved() {
    const text = this.open ? this.area.value.trim() : this.findings;
    return text !== this.draft && text !== this.taken;
  }

  /** These words were copied or saved. */
  take(words) {
    this.taken = words;
  }

  reset(draft) {
    this.draft = draft;
    this.text = this.taken = null;
    this.box.hidden = true;
  }

  begin() {
    if (this.open) {
      this.area.focus(); // what was typed stays
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

  /** End editing and keep what was written, without telling. */
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
