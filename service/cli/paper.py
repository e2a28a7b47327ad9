"""How `twigserve describe` shows answers: text with drafted tokens coloured, or JSON; progress beside it.

Invariant: standard output holds answers alone; progress, legend and complaints go to standard error.
Colours and progress only on a terminal (NO_COLOR is honoured by rich).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.answers import description_json
from service.schemas import Description, TokenEvent

DRAFTED = "green"


class Paper:
    """several: each answer is headed by its picture's name. live: tokens are shown as they come."""

    def __init__(self, *, several: bool, live: bool, as_json: bool) -> None:
        self._several, self._live, self._as_json = several, live, as_json
        self._out = Console(soft_wrap=True, highlight=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False)
        self._rounds: list[TokenEvent] = []

    def begin(self, name: str) -> None:
        if self._several and not self._as_json:
            self._out.print(Text(f"{name}:", style="bold"))

    def token(self, event: TokenEvent) -> None:
        self._rounds.append(event)
        if self._live and not self._as_json:
            self._out.print(coloured([event]), end="")

    def done(self, name: str, answer: Description) -> None:
        if self._as_json:
            print(json.dumps({"file": name, **description_json(answer)}), flush=True)
            self._rounds = []
            return
        self._out.print("" if self._live else coloured(self._rounds))
        self._out.print(Text(told(answer), style="dim"))
        self._rounds = []

    def failed(self, name: str, message: str) -> None:
        if self._live and self._rounds and not self._as_json:
            self._out.print()
        self._rounds = []
        self.say(f"twigserve: {name}: {message}")

    def say(self, message: str) -> None:
        self._err.print(Text(message))

    def legend(self) -> None:
        if self._out.is_terminal and not self._as_json:
            words = ("drafted by the twig and accepted", "; the rest is the full network's own")
            self._err.print(Text.assemble((words[0], DRAFTED), words[1], style="dim"))

    @contextmanager
    def progress(self, total: int) -> Iterator[Progress]:
        """A bar over several pictures; where tokens stream, they are the progress."""
        shown = self._err.is_terminal and total > 1 and not self._live
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._err, disable=not shown, transient=True) as bar:
            bar.add_task("describing", total=total)
            yield bar


def coloured(rounds: Sequence[TokenEvent]) -> Text:
    """A round of both kinds whose pieces are not told cannot be split: it stays plain."""
    text = Text()
    for event in rounds:
        pieces = event.pieces if "".join(event.pieces) == event.text else [event.text]
        drafted = event.drafted if len(pieces) == len(event.drafted) else [all(event.drafted)] * len(pieces)
        for piece, whose in zip(pieces, drafted, strict=True):
            text.append(piece, DRAFTED if whose else None)
    return text


def told(answer: Description) -> str:
    speculative = answer.metrics.speculative_decoding
    image = answer.usage.prompt_tokens_details
    pruned = image.pruned_image_tokens / image.image_tokens if image.image_tokens else 0.0
    drafts = speculative.num_draft_tokens
    return (
        f"acceptance {speculative.draft_acceptance_rate:.1%} of {drafts} drafted tokens, "
        f"pruned {pruned:.1%} of {image.image_tokens} visual tokens, "
        f"{answer.metrics.tokens_per_second:.0f} tokens/s"
    )
