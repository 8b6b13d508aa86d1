// Compares a reference case with the draft by the findings that they name.

/** Sentences of a text, without the spaces between them. */
export const sentencesOf = (text) => text.split(/(?<=[.!?])\s+/).filter((sentence) => sentence.trim() !== "");

const isNamed = (labels, name) => name !== "No Finding" && ["present", "uncertain"].includes(labels[name]);

/**
 * Compare the labels of a case with those of the draft.
 * @returns {{relations: Object<string, "both"|"denied"|"only">, missing: string[], denied: string[]}} relations: for each present or
 *   possible finding of the case, whether the draft has it too, denies it or says nothing; missing, denied: findings of the draft that
 *   the case does not mention, or denies
 */
export function findingsCompared(draft, other) {
  const inCase = Object.keys(other).filter((name) => isNamed(other, name));
  const inDraft = Object.keys(draft).filter((name) => isNamed(draft, name) && !inCase.includes(name));
  return {
    relations: Object.fromEntries(inCase.map((name) => [name, isNamed(draft, name) ? "both" : draft[name] === "absent" ? "denied" : "only"])),
    missing: inDraft.filter((name) => other[name] !== "absent"),
    denied: inDraft.filter((name) => other[name] === "absent"),
  };
}
