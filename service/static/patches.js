// Painting on the keep-map's canvas: the picture as the network saw it, and its patches.
// Invariant: a cell of the canvas is a patch of the vision tower, so the picture is brought to the card's image
// spec (stretched, cropped or padded) as the server does.

/** @typedef {{rows: number, columns: number}} Grid */

const VEIL = "rgb(24 30 27 / 80%)";
const EDGE = "#ffffff";
const MESH = "rgb(255 255 255 / 30%)";
const NO_PAD = [128, 128, 128];
// From low to high: dark blue, teal, yellow.
const RAMP = [[28, 22, 74], [29, 120, 130], [250, 220, 70]];
const SIDES = [[-1, 0], [1, 0], [0, -1], [0, 1]];

/** The picture as the vision tower gets it; see `ImageSpec.fit`. Without a bitmap: an even ground. */
export function drawAsSeen(context, bitmap, spec) {
  const { width, height } = context.canvas;
  context.fillStyle = `rgb(${(spec.pad_color ?? NO_PAD).join(" ")})`;
  context.fillRect(0, 0, width, height);
  if (!bitmap) return;
  context.imageSmoothingQuality = "high";
  if (spec.fit === "stretch" || spec.dynamic) {
    context.drawImage(bitmap, 0, 0, width, height);
    return;
  }
  const pick = spec.fit === "crop" ? Math.max : Math.min;
  const scale = pick(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
}

/** The patches that the network cuts the picture into. @param {Grid} grid */
export function drawGrid(context, { rows, columns }) {
  const { width, height } = context.canvas;
  const pitch = width / columns;
  context.fillStyle = MESH;
  for (let column = 1; column < columns; column += 1) context.fillRect(column * pitch - 1, 0, 2, height);
  for (let row = 1; row < rows; row += 1) context.fillRect(0, row * pitch - 1, width, 2);
}

/** @param {Grid} grid  @param {Set<number>} kept row-major indices */
export function drawPruned(context, grid, kept) {
  const pitch = context.canvas.width / grid.columns;
  context.fillStyle = VEIL;
  for (const { index, x, y } of cells(grid, pitch)) {
    if (!kept.has(index)) context.fillRect(x, y, pitch, pitch);
  }
  // A line around what is kept: on a dark picture the veil alone would not show.
  context.fillStyle = EDGE;
  for (const cell of cells(grid, pitch)) {
    if (kept.has(cell.index)) drawEdges(context, grid, kept, cell, pitch);
  }
}

function drawEdges(context, grid, kept, { row, column, x, y }, pitch) {
  const line = Math.max(2, Math.round(pitch / 16));
  for (const [down, right] of SIDES) {
    if (isKept(grid, kept, row + down, column + right)) continue;
    const left = right > 0 ? x + pitch - line : x;
    const top = down > 0 ? y + pitch - line : y;
    context.fillRect(left, top, right ? line : pitch, down ? line : pitch);
  }
}

function isKept({ rows, columns }, kept, row, column) {
  const inside = row >= 0 && column >= 0 && row < rows && column < columns;
  return inside && kept.has(row * columns + column);
}

/** Coloured by rank, not by score: the scores span orders of magnitude. @param {number[]} ranks from 1 */
export function drawScores(context, grid, ranks) {
  const pitch = context.canvas.width / grid.columns;
  const last = Math.max(1, ranks.length - 1);
  for (const { index, x, y } of cells(grid, pitch)) {
    // Squared: among the many low ranks the differences mean little and should not catch the eye.
    context.fillStyle = ramp((1 - (ranks[index] - 1) / last) ** 2);
    context.fillRect(x, y, pitch, pitch);
  }
}

function* cells({ rows, columns }, pitch) {
  for (let index = 0; index < rows * columns; index += 1) {
    const [row, column] = [Math.floor(index / columns), index % columns];
    yield { index, row, column, x: column * pitch, y: row * pitch };
  }
}

function ramp(share) {
  const [from, to] = share < 0.5 ? [RAMP[0], RAMP[1]] : [RAMP[1], RAMP[2]];
  const part = share < 0.5 ? share * 2 : share * 2 - 1;
  const [r, g, b] = from.map((start, i) => Math.round(start + (to[i] - start) * part));
  return `rgb(${r} ${g} ${b} / 72%)`;
}
