// Where the decoder looked, laid over an image: the grid stretched over the whole of it, as the model saw it.

const STRONGEST = 0.75; // opacity where the weight is largest
const STEEP = 1.6; // above 1: what is weak stays clear, so that the image is seen
const COLOUR = [255, 176, 59]; // warm on grey, told from the image without hue as well
const THIRDS = [["upper", "middle", "lower"], ["left", "centre", "right"]];

/** Place `canvas` over the part of `box` that an image of `width` x `height` fills when it is fitted into it. */
export function fit(canvas, box, width, height) {
  const scale = Math.min(box.clientWidth / width, box.clientHeight / height);
  const shown = [width * scale, height * scale];
  canvas.style.width = `${shown[0]}px`;
  canvas.style.height = `${shown[1]}px`;
  canvas.style.left = `${(box.clientWidth - shown[0]) / 2}px`;
  canvas.style.top = `${(box.clientHeight - shown[1]) / 2}px`;
}

/**
 * Draw a grid of weights, rows from top to bottom, as a smooth veil.
 * @param {HTMLCanvasElement} canvas
 * @param {number[][]} grid
 * @param {{least: number, most: number}} range drawn from clear to strongest, the same for all images of a sentence
 */
export function drawHeat(canvas, grid, { least, most }) {
  const rows = grid.length;
  const columns = grid[0].length;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = new ImageData(columns, rows);
  grid.flat().forEach((weight, place) => {
    const opacity = STRONGEST * ((weight - least) / (most - least)) ** STEEP;
    pixels.data.set([...COLOUR, Math.round(255 * opacity)], 4 * place);
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
 * The same for those who do not see it.
 * @param {Object<string, number[][]>} patches
 * @returns {{view: string, share: number, place: string}[]} share of all attention, and the ninth of the image that
 *   holds the strongest patch, such as "upper.left"
 */
export function whereabouts(patches) {
  return Object.entries(patches).map(([view, grid]) => {
    const weights = grid.flat();
    const strongest = weights.indexOf(Math.max(...weights));
    const at = [Math.floor(strongest / grid[0].length) / grid.length, (strongest % grid[0].length) / grid[0].length];
    const place = at.map((share, axis) => THIRDS[axis][Math.floor(3 * (share + 0.5 / grid.length))]).join(".");
    return { view, share: weights.reduce((sum, weight) => sum + weight, 0), place };
  });
}
