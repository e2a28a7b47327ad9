"""The guide's figures, drawn from runs of the embedded model: `python docs/figures.py`.

Run it again when the weights have changed; it overwrites docs/pictures.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from PIL import Image  # noqa: E402 (after the path)

from model.engine import Engine  # noqa: E402
from model.keepmap import keep_map  # noqa: E402
from model.request import Request, SamplingParams, StepOutput  # noqa: E402

SCENE = DOCS / "samples/panda.png"
PICTURES = DOCS / "pictures"
DESCRIBE = "Describe the image."
# As the guide's table names them.
QUESTIONS = (DESCRIBE, "What is at the top left?", "What is the background?")
PATCH_PX = 16
ROUNDS_SHOWN = 8


def main() -> None:
    engine = Engine.from_pretrained("embedded", dtype="float32")
    PICTURES.mkdir(exist_ok=True)
    tiers = {name: kept for name, kept in engine.card.quality.items() if kept < engine.card.image_tokens}
    for name, retained in tiers.items():
        draw(engine, DESCRIBE, retained, PICTURES / f"keep-map-{name}.png")
    for number, question in enumerate(QUESTIONS, start=1):
        draw(engine, question, tiers["fast"], PICTURES / f"question-{number}.png")
    rounds = answer(engine, DESCRIBE, tiers["fast"], max_tokens=48)
    (PICTURES / "rounds.svg").write_text(svg(rounds[:ROUNDS_SHOWN]), encoding="utf-8")


def answer(engine: Engine, prompt: str, retained: int, max_tokens: int) -> list[StepOutput]:
    sampling = SamplingParams(max_tokens=max_tokens)
    picture = Image.open(SCENE).convert("RGB")
    engine.add(Request(prompt=prompt, images=[picture], sampling=sampling, retained_tokens=retained))
    outputs: list[StepOutput] = []
    while engine.has_work():
        outputs += engine.step()
    return outputs


def draw(engine: Engine, prompt: str, retained: int, path: Path) -> None:
    (result,) = [out.result for out in answer(engine, prompt, retained, max_tokens=1) if out.result]
    card = engine.card
    drawn = keep_map(Image.open(SCENE), card.image, card.grid, result.kept_indices, patch_px=PATCH_PX)
    drawn.save(path, optimize=True)


# --- the rounds of an answer ---

ROW_PX, CHAR_PX, PAD_PX, LEFT_PX = 34, 8.4, 8, 74
STYLE = """
  text { font: 14px ui-monospace, "DejaVu Sans Mono", monospace; fill: #1b211d; }
  .note { font: 13px system-ui, sans-serif; fill: #6f7c73; }
  .drafted { fill: #d3ecd9; stroke: #2c6a4c; } .own { fill: #ffffff; stroke: #8b8f84; }
"""


def svg(rounds: list[StepOutput]) -> str:
    """A row a round: its tokens in boxes, the accepted drafts green, the base's own white."""
    rows = [_row(number, output) for number, output in enumerate(rounds)]
    width = max(end for _, end in rows) + PAD_PX
    height = ROW_PX * (len(rows) + 1)
    legend = (
        f'<text class="note" x="{LEFT_PX}" y="{ROW_PX * len(rows) + 22}">'
        "green: drafted by the twig, accepted by the base; white: the base's own token</text>"
    )
    body = "\n".join(row for row, _ in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 620):.0f} {height}">'
        f"<style>{STYLE}</style>\n{body}\n{legend}\n</svg>\n"
    )


def _row(number: int, output: StepOutput) -> tuple[str, float]:
    """(its elements, where it ends)"""
    y, x = ROW_PX * number + 4, float(LEFT_PX)
    parts = [f'<text class="note" x="0" y="{y + 18}">round {number + 1}</text>']
    for piece, drafted in zip(output.pieces, output.drafted, strict=True):
        shown = piece.strip() or "∎"
        width = CHAR_PX * len(shown) + 2 * PAD_PX
        kind = "drafted" if drafted else "own"
        parts.append(f'<rect class="{kind}" x="{x:.0f}" y="{y}" width="{width:.0f}" height="26" rx="5"/>')
        parts.append(f'<text x="{x + PAD_PX:.0f}" y="{y + 18}">{escape(shown)}</text>')
        x += width + 6
    return "".join(parts), x


if __name__ == "__main__":
    main()
