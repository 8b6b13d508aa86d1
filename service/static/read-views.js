// The service may read an image as the other view than the one it was sent in. The page then shows it as that view.

const OTHER = { frontal: "lateral", lateral: "frontal" };

/**
 * Move the images to the views as which they were read.
 * @param {object} answer of POST /report; its maps are keyed by the view in which an image was sent
 * @param {string[]} sent views of the images
 * @param {Views} views
 * @returns {[object, string[], string[]]} the answer with maps keyed by the view shown, `sent`, and the views shown
 */
export function readAs(answer, sent, views) {
  const isMoved = answer.image_checks.length === sent.length && answer.image_checks.every(({ view }, index) => view === OTHER[sent[index]]);
  if (!isMoved) return [answer, sent, sent];
  views.exchange();
  const moved = (map) => map && { ...map, patches: Object.fromEntries(Object.entries(map.patches).map(([view, grid]) => [OTHER[view], grid])) };
  const sentences = answer.sentences.map((sentence) => ({ ...sentence, attention: moved(sentence.attention), evidence: moved(sentence.evidence) }));
  return [{ ...answer, sentences }, sent, sent.map((view) => OTHER[view])];
}
