// Draws an answer. Text goes in as text nodes, never as markup.

const LOW = 0.5; // confidence below this is drawn in the colour of doubt
const ORDER = ["present", "uncertain", "absent"];
const REDACTED = "[redacted]";

/** An element with properties and children; strings become text. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A bar for the eye and the same as text for everyone: `share` 0..1, `name` in words. */
function measure(share, amount, name, low = false) {
  const fill = element("span", { className: "fill" });
  fill.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  const track = element("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true");
  return element(
    "span",
    { className: low ? "measure low" : "measure" },
    track,
    element("span", { className: "amount" }, name, amount),
  );
}

function chip(name, label) {
  const kind = name === "No Finding" && label === "present" ? "calm" : label; // its presence is good news
  return element("span", { className: `chip ${kind}` }, name, element("span", { className: "unseen" }, `: ${label}`));
}

export function drawSentences(list, sentences) {
  list.replaceChildren(
    ...sentences.map(({ text, confidence }) => {
      const low = confidence < LOW;
      const name = element("span", { className: "unseen" }, low ? "low confidence, " : "confidence ");
      return element(
        "li",
        {},
        element("span", { className: "words" }, text),
        measure(confidence, `${Math.round(100 * confidence)} %`, name, low),
      );
    }),
  );
}

export function drawLabels(root, labels) {
  const entries = Object.entries(labels);
  const chips = ORDER.flatMap((label) =>
    entries.filter(([, value]) => value === label).map(([name]) => chip(name, label)),
  );
  const silent = entries.filter(([name, value]) => value === null && name !== "No Finding").map(([name]) => name);
  const rest = silent.length
    ? [element("p", { className: "rest" }, `Not mentioned: ${silent.join(", ")}.`)]
    : [];
  root.replaceChildren(...chips, ...rest);
}

export function drawWarnings(list, warnings) {
  const here = warnings.filter(({ code }) => code !== "texts_not_available"); // said beside the cases
  list.replaceChildren(...here.map(({ message }) => element("li", {}, message)));
}

export function drawCases(list, note, cases) {
  list.replaceChildren(...cases.map(drawCase));
  if (cases.length === 0) note.textContent = "This model works without reference cases.";
  else if (cases.some(({ findings }) => findings !== null)) {
    note.textContent = "Reports of other patients whose text lies nearest to these images. They are not this patient's.";
  } else {
    note.replaceChildren(
      "The texts are not shipped with the model. Whoever runs the service can fill them in with ",
      element("code", {}, "python -m retrieval_index.hydrate"),
      " and a restart.",
    );
  }
}

function drawCase({ rank, case_id: id, similarity, findings, labels, source_url: url }) {
  const head = element(
    "div",
    { className: "case-head" },
    element("span", { className: "rank" }, element("span", { className: "unseen" }, "Rank "), `${rank}`),
    element("code", {}, id),
    measure(similarity, similarity.toFixed(2), "similarity "),
  );
  const text =
    findings === null
      ? element("p", { className: "case-text none" }, "Text not available here.")
      : element("p", { className: "case-text" }, ...markRedactions(findings));
  const chips = element(
    "div",
    { className: "labels" },
    ...["present", "uncertain"].flatMap((label) =>
      Object.entries(labels)
        .filter(([, value]) => value === label)
        .map(([name]) => chip(name, label)),
    ),
  );
  const foot = element("div", { className: "case-foot" }, chips);
  if (/^https?:\/\//i.test(url ?? "")) {
    const link = element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, `Source: ${new URL(url).host}`);
    link.append(element("span", { className: "unseen" }, " (opens a new tab)"));
    foot.append(link);
  }
  return element("li", {}, head, text, foot);
}

/** What the archive blacked out is shown as a block, so that it does not read as the report's own words. */
function markRedactions(text) {
  return text.split(REDACTED).flatMap((piece, index) => {
    const mark = element("span", { className: "redacted", title: "blacked out by the archive" }, "redacted");
    return index === 0 ? [piece] : [mark, piece];
  });
}

export function drawMade(list, { model, timings_ms: timings, report_id: id }) {
  const stages = Object.entries(timings)
    .filter(([name]) => name !== "total")
    .map(([name, value]) => `${name} ${Math.round(value)}`)
    .join(", ");
  const retrieval = model.retrieval_k === null ? "no reference cases" : `${model.retrieval_k} reference cases`;
  const rows = [
    ["Time", `${(timings.total / 1000).toFixed(2)} s (ms: ${stages})`],
    ["Model", `${model.name}, ${model.backbone}, ${model.image_size} px, ${retrieval}`],
    ["Bundle", model.digest.slice(0, 16)],
    ["Report", id],
  ];
  list.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
