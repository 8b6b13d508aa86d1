// Differences between a reference case and the draft. Compares words only.

const STOP_WORDS = new Set(
  "a an and are as at be been but by for from has have in into is it its no not of on or seen than that the there this to was were which with within without".split(" "),
);
const MIN_SHARED_WORDS = 0.75; // share of a sentence's content words that one sentence of the draft must contain
const NEGATIONS = /\b(no|not|without|free of|negative for)\b/i;

/** Sentences of a text, without the spaces between them. */
export const sentencesOf = (text) => text.split(/(?<=[.!?])\s+/).filter((sentence) => sentence.trim() !== "");

function contentWords(sentence) {
  const words = sentence.toLowerCase().match(/[a-z]+/g) ?? [];
  return new Set(words.filter((word) => word.length > 2 && !STOP_WORDS.has(word)).map((word) => word.replace(/(es|s)$/, "")));
}

/** For each sentence of `text`: [sentence, whether a sentence of `draft` is similar]. */
export function compared(text, draft) {
  const drafted = sentencesOf(draft).map((sentence) => [contentWords(sentence), NEGATIONS.test(sentence)]);
  return sentencesOf(text).map((sentence) => {
    const words = contentWords(sentence);
    const negated = NEGATIONS.test(sentence);
    const similar = drafted.some(([others, otherNegated]) => {
      if (negated !== otherNegated) return false;
      const shared = [...words].filter((word) => others.has(word)).length;
      return shared >= MIN_SHARED_WORDS * words.size;
    });
    return [sentence, words.size === 0 || similar];
  });
}

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
