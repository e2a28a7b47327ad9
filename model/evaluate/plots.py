"""The accuracy page's plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from model.evaluate.ways import NONE

Entry = dict[str, Any]


def plot_budgets(path: Path, entries: Sequence[Entry]) -> None:
    """RelAcc over R-bar, a line a method."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(entry["method"] for entry in entries if entry["method"] != NONE):
        points = sorted((e["retained_tokens"], e["rel_acc"]) for e in entries if e["method"] == method)
        width = 2.5 if method == "ttp" else 1
        axes.plot(*zip(*points, strict=True), marker="o", label=method, linewidth=width)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="visual tokens kept on average (R̄)", ylabel="RelAcc", ylim=(None, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_drafts(path: Path, entries: Sequence[Entry]) -> None:
    """Acceptance and accepted length over theta, a line for each gamma and R-bar."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    pairs = dict.fromkeys((e["draft_tokens"], e["retained_tokens"]) for e in entries)
    styles = dict(zip(dict.fromkeys(budget for _, budget in pairs), ("-", "--", ":", "-."), strict=False))
    colors = {drafts: f"C{n}" for n, drafts in enumerate(dict.fromkeys(drafts for drafts, _ in pairs))}
    for axes, figure_name, label in zip(
        panels, ("acceptance", "tokens_per_round"), ("acceptance", "accepted length"), strict=True
    ):
        for drafts, budget in pairs:
            own = [e for e in entries if (e["draft_tokens"], e["retained_tokens"]) == (drafts, budget)]
            axes.plot(
                [e["draft_threshold"] for e in own], [e[figure_name] for e in own], marker=".",
                color=colors[drafts], linestyle=styles[budget], label=f"γ={drafts}, R̄={budget}",
            )  # fmt: skip
        axes.set(xlabel="θ", ylabel=label)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
