"""What an evaluation shows: RelAcc, a table for a terminal and one for a page.

RelAcc is the paper's: the mean over tasks of pruned accuracy divided by unpruned accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Entry = dict[str, Any]


def with_rel_acc(entries: Sequence[Entry], unpruned: Entry) -> list[Entry]:
    """The entries with `rel_acc`, the mean over the tasks that the unpruned model can do at all."""
    whole = {task: score for task, score in unpruned["tasks"].items() if score}
    if not whole:
        raise ValueError("the unpruned model has no task right: there is nothing to compare with")
    return [
        entry | {"rel_acc": round(sum(entry["tasks"][t] / s for t, s in whole.items()) / len(whole), 4)}
        for entry in entries
    ]


def _rows(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    tasks, parts = list(entries[0]["tasks"]), list(entries[0]["description"])
    head = ["method", "R̄", "RelAcc", *tasks, *parts, "acceptance", "tokens/round"]
    rows = []
    for entry in entries:
        scores = [entry["tasks"][task] for task in tasks] + [entry["description"][part] for part in parts]
        figures = [entry["rel_acc"], *scores, entry["acceptance"]]
        rows.append([
            entry["method"], str(entry["retained_tokens"]), *(f"{figure:.3f}" for figure in figures),
            f"{entry['tokens_per_round']:.2f}",
        ])  # fmt: skip
    return head, rows


def markdown(entries: Sequence[Entry]) -> str:
    return table(*_rows(entries))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_table(entries: Sequence[Entry], *, aside: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    head, rows = _rows(entries)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(stderr=aside).print(table)
