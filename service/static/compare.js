// What a reference case says that the draft does not, and the other way round. Words only; no judgement.

const SHORT = new Set(
  "a an and are as at be been but by for from has have in into is it its no not of on or seen than that the there this to was were which with within without".split(" "),
);
const ALIKE = 0.75; // share of a sentence's telling words that one sentence of the draft must hold
const NEGATIONS = /\b(no|not|without|free of|negative for)\b/i;

/** Sentences of a text, with what stands between them left out. */
export const sentencesOf = (text) => text.split(/(?<=[.!?])\s+/).filter((sentence) => sentence.trim() !== "");

function telling(sentence) {
  const words = sentence.toLowerCase().match(/[a-z]+/g) ?? [];
  return new Set(words.filter((word) => word.length > 2 && !SHORT.has(word)).map((word) => word.replace(/(es|s)$/, "")));
}

/** For each sentence of `text`: [sentence, whether some sentence of `draft` says much the same]. */
export function compared(text, draft) {
  const drafted = sentencesOf(draft).map((sentence) => [telling(sentence), NEGATIONS.test(sentence)]);
  return sentencesOf(text).map((sentence) => {
    const words = telling(sentence);
    const negated = NEGATIONS.test(sentence);
    const alike = drafted.some(([others, otherNegated]) => {
      if (negated !== otherNegated) return false;
      const shared = [...words].filter((word) => others.has(word)).length;
      return shared >= ALIKE * words.size;
    });
    return [sentence, words.size === 0 || alike];
  });
}

/** Findings by where they are called present or uncertain: in both, in the case alone, in the draft alone. */
export function findingsCompared(draft, other) {
  const named = (labels) => Object.keys(labels).filter((name) => name !== "No Finding" && ["present", "uncertain"].includes(labels[name]));
  const mine = named(draft);
  const theirs = named(other);
  return {
    both: theirs.filter((name) => mine.includes(name)),
    caseOnly: theirs.filter((name) => !mine.includes(name)),
    draftOnly: mine.filter((name) => !theirs.includes(name)),
  };
}
