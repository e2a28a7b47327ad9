// The keep-map: the picture as the network saw it, with the patches that pruning dropped dimmed.
// Invariant: the cell that is marked and told is the patch under the pointer or the keyboard's cursor.
// Knows nothing of requests; how patches are painted is in `patches`.

import { onPick, press } from "./dom.js";
import { drawAsSeen, drawGrid, drawPruned, drawScores } from "./patches.js";

const CANVAS_PX = 960;
const HINT = "Point at a patch, or walk there with the arrow keys, to see its score.";
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class KeepMap {
  /** @param {HTMLElement} figure */
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.marker = figure.querySelector(".cell");
    this.count = figure.querySelector(".map-count");
    this.told = figure.querySelector(".map-cell");
    this.views = figure.querySelector(".views");
    this.view = "kept";
    this.map = null;
    this.listen();
  }

  listen() {
    onPick(this.views, (button) => this.setView(button.dataset.view));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.mark(null));
    this.canvas.addEventListener("focus", () => this.mark(this.cell ?? [0, 0]));
    this.canvas.addEventListener("blur", () => this.mark(null));
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
  }

  /** The picture alone, until the answer brings its map. */
  begin(bitmap, card) {
    this.bitmap = bitmap;
    this.spec = card.image;
    // A picture that keeps its own shape has no grid before its map is here.
    [this.rows, this.columns] = card.image.dynamic && bitmap ? [bitmap.height, bitmap.width] : card.grid;
    this.map = null;
    this.cell = null;
    this.figure.hidden = false;
    this.views.hidden = true;
    this.size();
    this.describe("The map of kept patches comes with the end of the answer.");
    this.setView("kept");
  }

  /** Before the first question: what there is to prune. */
  preview(bitmap, card) {
    this.begin(bitmap, card);
    this.describe(card.image.dynamic
      ? "Cut into patches by its own size."
      : `${this.rows} × ${this.columns} patches, before any is pruned.`);
  }

  /** @param {{grid: [number, number], kept: number[], scores: number[] | null} | undefined} map */
  show(map) {
    if (!map) {
      this.describe("The answer came without a map.");
      return;
    }
    this.map = { ...map, kept: new Set(map.kept), ranks: map.scores && ranks(map.scores) };
    [this.rows, this.columns] = map.grid;
    this.size();
    const all = this.rows * this.columns;
    this.describe(`${map.kept.length} of ${all} kept`);
    this.views.hidden = false;
    this.views.querySelector('[data-view="scores"]').disabled = !map.scores;
    this.setView(this.view);
  }

  hide() {
    this.figure.hidden = true;
  }

  describe(text) {
    this.count.textContent = text;
    this.canvas.setAttribute("aria-label", `${text} Grid of ${this.rows} by ${this.columns}; arrow keys move.`);
    this.mark(null);
  }

  /** Whole pixels a patch, so that no line blurs. */
  size() {
    this.pitch = Math.max(1, Math.round(CANVAS_PX / this.columns));
    this.canvas.width = this.pitch * this.columns;
    this.canvas.height = this.pitch * this.rows;
  }

  setView(view) {
    this.view = view === "scores" && !this.map?.scores ? "kept" : view;
    press(this.views, this.views.querySelector(`[data-view="${this.view}"]`));
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    drawAsSeen(context, this.bitmap, this.spec);
    const grid = { rows: this.rows, columns: this.columns };
    if (!this.map && !this.spec.dynamic) drawGrid(context, grid);
    if (!this.map || this.view === "picture") return;
    if (this.view === "scores") drawScores(context, grid, this.map.ranks);
    else drawPruned(context, grid, this.map.kept);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
    this.mark([clamp(row, this.rows), clamp(column, this.columns)]);
  }

  walk(event) {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = this.cell ?? [0, 0];
    this.mark([clamp(row + step[0], this.rows), clamp(column + step[1], this.columns)]);
  }

  /** @param {[number, number] | null} cell */
  mark(cell) {
    this.marker.hidden = !cell || !this.map;
    this.told.textContent = this.map ? HINT : "";
    if (!cell || !this.map) return;
    this.cell = cell;
    const [row, column] = cell;
    const { style } = this.marker;
    style.left = `${(100 * column) / this.columns}%`;
    style.top = `${(100 * row) / this.rows}%`;
    style.width = `${100 / this.columns}%`;
    style.height = `${100 / this.rows}%`;
    this.told.textContent = this.tell(row, column);
  }

  tell(row, column) {
    const index = row * this.columns + column;
    const kept = this.map.kept.has(index) ? "kept" : "pruned";
    const place = `Row ${row + 1}, column ${column + 1}: ${kept}`;
    if (!this.map.scores) return place;
    return `${place}, score ${this.map.scores[index].toPrecision(3)}, rank ${this.map.ranks[index]}`;
  }
}

const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

/** ranks[i] is 1 for the best score; of equals the earlier one is better, as in the engine. */
function ranks(scores) {
  const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  const ranked = new Array(scores.length);
  order.forEach((index, place) => (ranked[index] = place + 1));
  return ranked;
}
