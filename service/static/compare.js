// Compares a reference case with the draft by the findings that they name, their sides and degrees.

/** Sentences of a text, without the spaces between them. */
export const sentencesOf = (text) => text.split(/(?<=[.!?])\s+/).filter((sentence) => sentence.trim() !== "");

const isNamed = (labels, name) => name !== "No Finding" && ["present", "uncertain"].includes(labels[name]);

/** What a text says of a finding that it does not deny, with the label of the whole text. */
export const annotationsOf = ({ labels, annotations = [] }, name) =>
  annotations.filter(({ finding, presence }) => finding === name && presence !== "absent" && presence === labels[name]);

const sidesOf = (found) => new Set(found.flatMap(({ side }) => (side === "both" ? ["left", "right"] : (side ?? []))));
const degreesOf = (found) => new Set(found.flatMap(({ degree }) => (degree === "minimal" ? "mild" : (degree ?? []))));
/** Whether both name something, and not the same; what one leaves out does not differ. */
const differ = (some, others) => some.size > 0 && others.size > 0 && (some.size !== others.size || ![...some].every((one) => others.has(one)));

/**
 * Compare a case with the draft: {labels, annotations} of each.
 * @returns {{relations: Object<string, "both"|"side"|"degree"|"denied"|"only">, missing: string[], denied: string[]}} relations: for each
 *   present or possible finding of the case, whether the draft has it too, has it on other sides or in other degrees, denies it or
 *   says nothing; missing, denied: findings of the draft that the case does not mention, or denies
 */
export function findingsCompared(draft, other) {
  const inCase = Object.keys(other.labels).filter((name) => isNamed(other.labels, name));
  const inDraft = Object.keys(draft.labels).filter((name) => isNamed(draft.labels, name) && !inCase.includes(name));
  return {
    relations: Object.fromEntries(inCase.map((name) => [name, relation(draft, other, name)])),
    missing: inDraft.filter((name) => other.labels[name] !== "absent"),
    denied: inDraft.filter((name) => other.labels[name] === "absent"),
  };
}

function relation(draft, other, name) {
  if (!isNamed(draft.labels, name)) return draft.labels[name] === "absent" ? "denied" : "only";
  const [mine, its] = [draft, other].map((text) => annotationsOf(text, name));
  if (differ(sidesOf(mine), sidesOf(its))) return "side";
  return differ(degreesOf(mine), degreesOf(its)) ? "degree" : "both";
}
