// The seconds since a question was asked, so that a long wait is seen to go on.
// Invariant: stands still unless something is under way. For the eye alone: a screen reader is not told every second.

const TICK_MS = 100;

export class Clock {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.ticking = null;
  }

  run(on) {
    clearInterval(this.ticking);
    this.element.textContent = "";
    if (!on) return;
    const began = performance.now();
    this.ticking = setInterval(() => {
      this.element.textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
    }, TICK_MS);
  }
}
