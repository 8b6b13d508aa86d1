// The attention of the decoder over an image. The grid covers the whole image, as the model received it.

const MAX_OPACITY = 0.75; // at the largest weight
const GAMMA = 1.6; // above 1: small weights stay transparent, so that the image remains visible
const COLOUR = [255, 176, 59]; // warm; differs from the grey image in brightness too
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

/**
 * Draw a grid of weights, rows from top to bottom, as a smooth heat map.
 * @param {HTMLCanvasElement} canvas
 * @param {number[][]} grid
 * @param {{min: number, max: number}} range weights drawn from transparent to strongest; the same for all images of a
 *   sentence
 */
export function drawHeat(canvas, grid, { min, max }) {
  const rows = grid.length;
  const columns = grid[0].length;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = new ImageData(columns, rows);
  grid.flat().forEach((weight, index) => {
    const opacity = MAX_OPACITY * ((weight - min) / (max - min)) ** GAMMA;
    pixels.data.set([...COLOUR, Math.round(255 * opacity)], 4 * index);
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
 * Describe the heat maps for screen readers.
 * @param {Object<string, number[][]>} patches
 * @returns {{view: string, share: number, location: string}[]} share of all attention, and the ninth of the image with
 *   the strongest patch, such as "upper.left"
 */
export function describeLocation(patches) {
  return Object.entries(patches).map(([view, grid]) => {
    const weights = grid.flat();
    const strongest = weights.indexOf(Math.max(...weights));
    const at = [Math.floor(strongest / grid[0].length) / grid.length, (strongest % grid[0].length) / grid[0].length];
    const location = at.map((share, axis) => THIRDS[axis][Math.floor(3 * (share + 0.5 / grid.length))]).join(".");
    return { view, share: weights.reduce((sum, weight) => sum + weight, 0), location };
  });
}
