// Maps over an image: a grid of values that covers the whole image, as the model received it.

const MAX_OPACITY = 0.75; // at the largest value
const GAMMA = 1.6; // above 1: small weights stay transparent, so that the image remains visible
const WARM = [255, 176, 59]; // differs from the grey image in brightness too
const COLD = [74, 168, 255]; // also with a colour vision deficiency different from WARM
const THIRDS = [["upper", "middle", "lower"], ["left", "centre", "right"]];

/** Align `canvas` with the part of `box` that an image of `width` x `height` covers when it is fitted into it. */
export function fit(canvas, box, width, height) {
  const scale = Math.min(box.clientWidth / width, box.clientHeight / height);
  const shown = [width * scale, height * scale];
  canvas.style.width = `${shown[0]}px`;
  canvas.style.height = `${shown[1]}px`;
  canvas.style.left = `${(box.clientWidth - shown[0]) / 2}px`;
  canvas.style.top = `${(box.clientHeight - shown[1]) / 2}px`;
}

/** Colours of attention weights, from transparent to strongest over all images of a sentence; null if all are equal. */
export function attentionColours(patches) {
  const weights = Object.values(patches).flat(2);
  const min = Math.min(...weights);
  const max = Math.max(...weights);
  return max > min ? (weight) => [...WARM, MAX_OPACITY * ((weight - min) / (max - min)) ** GAMMA] : null;
}

/** Colours of signed contributions, transparent at 0 and strongest at `largest`; null if all are 0. */
export function evidenceColours(largest) {
  return largest > 0 ? (value) => [...(value < 0 ? COLD : WARM), MAX_OPACITY * Math.min(1, Math.abs(value) / largest)] : null;
}

/**
 * Draw a grid, rows from top to bottom, as a smooth map.
 * @param {HTMLCanvasElement} canvas
 * @param {number[][]} grid
 * @param {function(number): number[]} colours red, green, blue and opacity (0..1) of a value
 */
export function drawMap(canvas, grid, colours) {
  const rows = grid.length;
  const columns = grid[0].length;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = new ImageData(columns, rows);
  grid.flat().forEach((value, index) => {
    const [red, green, blue, opacity] = colours(value);
    pixels.data.set([red, green, blue, Math.round(255 * opacity)], 4 * index);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  canvas.width = 32 * columns;
  canvas.height = 32 * rows;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/**
 * Describe maps for screen readers.
 * @param {Object<string, number[][]>} patches
 * @returns {{view: string, sum: number, strongest: number, location: string}[]} sum of the values, and the one that is
 *   farthest from 0 with its ninth of the image, such as "upper.left"
 */
export function describeLocation(patches) {
  return Object.entries(patches).map(([view, grid]) => {
    const values = grid.flat();
    const sizes = values.map(Math.abs);
    const strongest = sizes.indexOf(Math.max(...sizes));
    const at = [Math.floor(strongest / grid[0].length) / grid.length, (strongest % grid[0].length) / grid[0].length];
    const location = at.map((share, axis) => THIRDS[axis][Math.floor(3 * (share + 0.5 / grid.length))]).join(".");
    return { view, sum: values.reduce((sum, value) => sum + value, 0), strongest: values[strongest], location };
  });
}
