// Reads what sorts a study from the first bytes of a DICOM file. The service reads and checks the file itself; a header
// that cannot be read here gives an empty result.

const WANTED = {
  "00080016": "sopClass", "00080020": "studyDate", "00080022": "acquisitionDate", "00080023": "contentDate", "00080030": "studyTime",
  "00080032": "acquisitionTime", "00080033": "contentTime",
  "00080060": "modality", "00080068": "intent", "00180015": "bodyPart", "00185101": "position", "0020000d": "study", "00200013": "number",
};
const VIEW_CODES_AT = "00540220/00080100"; // CodeValue in ViewCodeSequence
const LAST_GROUP = 0x0054;
const LONG_LENGTH = new Set("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(" "));
const UNDEFINED = 0xffffffff;
const MAX_DEPTH = 16;
const IMPLICIT = "1.2.840.10008.1.2";
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const DEFLATED = "1.2.840.10008.1.2.1.99";
const DIRECTORY = "1.2.840.10008.1.3.10";
const IMAGES = "1.2.840.10008.5.1.4.1.1.";
const RADIOGRAPHS = ["1", "1.1", "7", "7.1", "7.2", "7.3", "7.4", "12.1", "12.2"].map((tail) => IMAGES + tail);
const FOR_PROCESSING = `${IMAGES}1.1.1`;
// The same terms as model/images/dicom/header.py.
const FRONTAL = "PA,AP,FRONTAL,POSTERO_ANTERIOR,ANTERO_POSTERIOR,272479007,R-40888,R-10214,399348003,R-10206,399033003,R-10202".split(",");
const LATERAL = "LL,RL,LAT,LATERAL,LLAT,RLAT,LEFT LATERAL,RIGHT LATERAL,399067008,R-102CD,399173006,R-10236,399198007,R-10232".split(",");
const OTHER = "RLD,LLD,RLO,LLO,RAO,LAO,RPO,LPO,OBLIQUE,AXIAL,DECUBITUS".split(",");
const CHEST = /CHEST|THORAX|LUNG|HEART|CXR/;
const OTHER_MODALITIES = /^(CT|MR|US|NM|PT|MG|SR|PR|KO|DOC|ES|SEG|REG|RT\w+|BMD|PX|IO)$/;

const hasPreamble = (bytes) => String.fromCharCode(...bytes.subarray(128, 132)) === "DICM";
const startsWithGroup8 = (bytes) => bytes[0] === 8 && bytes[1] === 0 && bytes[3] === 0 && bytes[2] <= 0x18; // without a preamble

export const isDicom = (bytes) => hasPreamble(bytes) || startsWithGroup8(bytes);

/**
 * @param {Uint8Array} bytes the beginning of the file
 * @returns {{isDirectory: boolean, refused: [string, string]|null, view: "frontal"|"lateral"|null, bodyPart: string,
 *   isChest: boolean, isCapture: boolean, study: string, studyAt: string, takenAt: string, number: number}} refused: the end of a key
 *   `left.…` of the dictionary, and its value
 */
export function readDicom(bytes) {
  const meta = {};
  const found = {};
  const codes = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    let at = hasPreamble(bytes) ? 132 : 0;
    while (view.getUint16(at, true) === 2) at = readElement(view, at, { explicit: true, little: true }, (tag, text) => (meta[tag] = text()));
    const syntax = meta["00020010"] ?? (/^[A-Z]{2}$/.test(ascii(view, at + 4, 2)) ? "" : IMPLICIT);
    const format = { explicit: syntax !== IMPLICIT, little: syntax !== BIG_ENDIAN };
    const keep = (tag, text) => {
      if (tag in WANTED) found[WANTED[tag]] = text();
      else if (tag === VIEW_CODES_AT) codes.push(text());
    };
    while (syntax !== DEFLATED && view.getUint16(at, format.little) <= LAST_GROUP) at = readElement(view, at, format, keep);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the header goes beyond these bytes, or is damaged
  }
  return described({ ...found, sopClass: found.sopClass ?? meta["00020002"] ?? "" }, codes);
}

function described({ sopClass, modality = "", intent = "", bodyPart = "", position = "", study = "", number = "", ...dates }, codes) {
  const terms = [position.toUpperCase(), ...codes];
  const view = terms.some((term) => FRONTAL.includes(term)) ? "frontal" : terms.some((term) => LATERAL.includes(term)) ? "lateral" : null;
  const isOther = sopClass !== "" && !RADIOGRAPHS.includes(sopClass);
  const isProcessing = sopClass === FOR_PROCESSING || intent.toUpperCase() === "FOR PROCESSING";
  let refused = null;
  if (isProcessing) refused = ["processing", ""];
  else if (isOther || OTHER_MODALITIES.test(modality)) refused = ["radiograph", modality || "?"];
  else if (OTHER.includes(terms[0])) refused = ["position", terms[0]];
  const at = (kind) => (dates[`${kind}Date`] ?? "") + (dates[`${kind}Time`] ?? "");
  return {
    isDirectory: sopClass === DIRECTORY,
    refused,
    view,
    bodyPart,
    isChest: bodyPart === "" || CHEST.test(bodyPart.toUpperCase()),
    isCapture: sopClass.startsWith(`${IMAGES}7`),
    study,
    studyAt: at("study"),
    takenAt: at("acquisition") || at("content"),
    number: Number.parseInt(number, 10) || 0,
  };
}

/**
 * Read one element and those in it; returns the position after it.
 * @param {function(string, function(): string)} onValue called with the tag, of a nested element after that of its sequence, and
 *   a function for its text
 * @throws {RangeError} beyond the end of the bytes
 */
function readElement(view, at, format, onValue, prefix = "", depth = 0) {
  if (depth > MAX_DEPTH) throw new RangeError("nested too deeply");
  const tag = prefix + [0, 2].map((part) => view.getUint16(at + part, format.little).toString(16).padStart(4, "0")).join("");
  let [length, start] = [view.getUint32(at + 4, format.little), at + 8];
  let isSequence = length === UNDEFINED || `${tag}/` === VIEW_CODES_AT.slice(0, 9);
  if (format.explicit) {
    const vr = ascii(view, at + 4, 2);
    if (LONG_LENGTH.has(vr)) [length, start] = [view.getUint32(at + 8, format.little), at + 12];
    else length = view.getUint16(at + 6, format.little);
    isSequence = vr === "SQ" || length === UNDEFINED;
    if (vr === "UN" && isSequence) format = { explicit: false, little: true }; // PS3.5, 6.2.2
  }
  if (isSequence) return readItems(view, start, length, format, onValue, `${tag}/`, depth + 1);
  onValue(tag, () => ascii(view, start, length));
  return start + length;
}

function readItems(view, start, length, format, onValue, prefix, depth) {
  const isOpen = length === UNDEFINED;
  let at = start;
  while (isOpen || at < start + length) {
    const [element, size] = [view.getUint16(at + 2, format.little), view.getUint32(at + 4, format.little)];
    at += 8;
    if (element === 0xe0dd) break; // end of the sequence
    const end = size === UNDEFINED ? Infinity : at + size;
    while (at < end) {
      if (view.getUint16(at, format.little) === 0xfffe) {
        at += 8; // end of the item
        break;
      }
      at = readElement(view, at, format, onValue, prefix, depth);
    }
  }
  return isOpen ? at : start + length;
}

const ascii = (view, start, length) => {
  if (start + length > view.byteLength) throw new RangeError("beyond the end");
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + start, Math.min(length, 128))).replace(/[\0 ]+$/g, "").trim();
};
