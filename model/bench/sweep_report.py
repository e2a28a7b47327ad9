"""The sweep's table and plot: docs/performance.md and performance.svg, with the command that made them.

Knows a report's rows, not how they were measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE, PLOT, DATA = "performance.md", "performance.svg", "performance.json"
MODES = {"off": "speculation off", "on": "speculation on", "governed": "with the governor"}
AXES = {
    "batch": "sequences in a batch",
    "retained_tokens": "R̄",
    "draft_tokens": "drafts a round at most",
    "prompt_tokens": "text tokens added to the prompt",
    "answer_tokens": "tokens of an answer",
}

Row = dict[str, Any]


def write_report(report: dict[str, Any], out: Path, command: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA).write_text(json.dumps({"command": command} | report, indent=1) + "\n")
    _plot(report["results"], out / PLOT)
    (out / PAGE).write_text(_page(report, command))
    return out / PAGE


def _groups(results: list[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results:
        groups.setdefault((row["model"], row["axis"]), []).append(row)
    return {key: sorted(groups[key], key=lambda row: row[row["axis"]]) for key in sorted(groups)}


def _page(report: dict[str, Any], command: str) -> str:
    where = report["machine"]
    how = f"{where['threads']} threads, {where['dtype']}, torch {where['torch']}"
    lines = [
        "# Performance",
        "",
        "Generated; do not edit. Decode tokens a second of the whole batch, pruning on (R̄ = 64 where it is",
        "not the axis), answers forced to their length; one thing is changed at a time.",
        "`model/bench/sweep.py` says how it is measured.",
        "",
        f"Made by `{command}` on {where['cpu']}, {where['cores']} cores ({', '.join(where['isa'])}),",
        f"{how}; medians of {where['repeats']}.",
        "",
        f"![tokens a second over each axis]({PLOT})",
        "",
    ]
    for (model, axis), rows in _groups(report["results"]).items():
        lines += _table(model, axis, rows)
    return "\n".join(lines)


def _table(model: str, axis: str, rows: list[Row]) -> list[str]:
    head = [AXES[axis], *(f"{name}, tokens/s" for name in MODES.values()), "governor ÷ off", "acceptance"]
    lines = [f"## {model}: {AXES[axis]}", "", f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for row in rows:
        share = "–" if row["acceptance"] is None else f"{row['acceptance']:.2f}"
        cells = [
            str(row[axis]),
            *(f"{row[mode]:.1f}" for mode in MODES),
            f"{row['governed_to_off']:.2f}",
            share,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _plot(results: list[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    groups = _groups(results)
    models, axes = sorted({model for model, _ in groups}), [a for a in AXES if any(a == g for _, g in groups)]
    size = (3.2 * len(axes), 2.8 * len(models))
    figure, panels = plt.subplots(len(models), len(axes), figsize=size, squeeze=False)
    for (model, axis), rows in groups.items():
        panel = panels[models.index(model)][axes.index(axis)]
        for mode, label in MODES.items():
            panel.plot([row[axis] for row in rows], [row[mode] for row in rows], marker="o", label=label)
        panel.set(title=model, xlabel=AXES[axis], ylabel="tokens/s", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
