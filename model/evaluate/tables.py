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
    compared = any("ttp_ahead" in entry for entry in entries)
    head = [
        "method",
        "R̄",
        "RelAcc",
        *["ttp ahead, 95 %"][:compared],
        *tasks,
        *parts,
        "acceptance",
        "tokens/round",
    ]
    rows = []
    for entry in entries:
        scores = [entry["tasks"][task] for task in tasks] + [entry["description"][part] for part in parts]
        rows.append([
            entry["method"], str(entry["retained_tokens"]), f"{entry['rel_acc']:.4f}",
            *[_interval(entry.get("ttp_ahead"))][:compared],
            *(f"{score:.3f}" for score in [*scores, entry["acceptance"]]), f"{entry['tokens_per_round']:.2f}",
        ])  # fmt: skip
    return head, rows


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} to {found[1]:+.4f}"


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
