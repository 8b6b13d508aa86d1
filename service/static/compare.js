// Compares a reference case with the draft by the findings that they name.

/** Sentences of a text, without the spaces between them. */
export const sentencesOf = (text) => text.split(/(?<=[.!?])\s+/).filter((sentence) => sentence.trim() !== "");

/** Findings that are present or uncertain in both, only in the case, or only in the draft. */
export function findingsCompared(draft, other) {
  const named = (labels) => Object.keys(labels).filter((name) => name !== "No Finding" && ["present", "uncertain"].includes(labels[name]));
  const inDraft = named(draft);
  const inCase = named(other);
  return {
    both: inCase.filter((name) => inDraft.includes(name)),
    caseOnly: inCase.filter((name) => !inDraft.includes(name)),
    draftOnly: inDraft.filter((name) => !inCase.includes(name)),
  };
}
