// Where the decoder looked, laid over an image: the grid stretched over the whole of it, as the model saw it.

const STRONGEST = 0.7; // opacity where the weight is largest
const COLOUR = [255, 176, 59]; // warm on grey, told from the image without hue as well

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
    const opacity = (STRONGEST * (weight - least)) / (most - least);
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
