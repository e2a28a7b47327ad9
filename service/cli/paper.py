"""How `twigserve describe` shows answers: text with drafted tokens coloured, or JSON; progress beside it.

Invariant: standard output holds answers alone; progress, legend and complaints go to standard error. What
models, services and file names say is shown, never obeyed: they may hold what a terminal takes for orders.
Colours and progress only on a terminal (NO_COLOR is honoured by rich).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from service.answers import description_json
from service.schemas import Description, TokenEvent

DRAFTED = "green"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # rich drops the carriage return


class Paper:
    """several: each answer is headed by its picture's name. live: tokens are shown as they come."""

    def __init__(self, *, several: bool, live: bool, as_json: bool) -> None:
        self._several, self._live, self._as_json = several, live and not as_json, as_json
        self._out = Console(soft_wrap=True, highlight=False)
        self._err = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._rounds: list[TokenEvent] = []
        self._heading = ""

    def begin(self, name: str) -> None:
        self._rounds = []
        self._heading = f"{name}:" if self._several and not self._as_json else ""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=self._shown(Path(name).name))

    def token(self, event: TokenEvent) -> None:
        self._rounds.append(event)
        if self._live:
            self._head()
            self._out.print(coloured([event], self._shown), end="")

    def done(self, name: str, answer: Description) -> None:
        with self._without_bar():
            if self._as_json:
                print(json.dumps({"file": name, **description_json(answer)}), flush=True)
                return
            self._head()
            self._out.print("" if self._live else coloured(self._rounds, self._shown))
            self._out.print(Text(told(answer), style="dim"))
            self._rounds = []

    def failed(self, name: str, message: str) -> None:
        self.say(f"twigserve: {name}: {message}")

    def say(self, message: str) -> None:
        if self._live and self._rounds:  # of an answer that broke off
            self._out.print()
            self._rounds = []
        with self._without_bar():
            self._err.print(Text(self._shown(message)))

    def legend(self) -> None:
        if self._out.is_terminal and not self._as_json:
            words = ("drafted by the twig and accepted", "; the rest is the full network's own")
            self._err.print(Text.assemble((words[0], DRAFTED), words[1], style="dim"))

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        """On a terminal alone."""
        return self._err.status(what) if self._err.is_terminal else nullcontext()

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar over the pictures; where tokens stream, they are the progress."""
        if not self._err.is_terminal or self._live:
            yield
            return
        spinner, passed = SpinnerColumn(), TimeElapsedColumn()
        words = TextColumn("{task.description}", markup=False)
        counted = (BarColumn(), MofNCompleteColumn()) if total > 1 else ()
        with Progress(spinner, words, *counted, passed, console=self._err, transient=True) as bar:
            bar.add_task("describing", total=total)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None  # so that nothing said later starts it again

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def _head(self) -> None:
        """Once."""
        if self._heading:
            self._out.print(Text(self._shown(self._heading), style="bold"))
        self._heading = ""

    def _shown(self, text: str) -> str:
        """As escapes what a terminal would obey, and what standard output's encoding does not have."""
        escaped = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        encoding = getattr(self._out.file, "encoding", None) or "utf-8"
        return escaped.encode(encoding, "backslashreplace").decode(encoding)

    @contextmanager
    def _without_bar(self) -> Iterator[None]:
        """Both streams are one terminal: what is written beside a bar would stand on its line."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()


def coloured(rounds: Sequence[TokenEvent], shown: Callable[[str], str] = str) -> Text:
    """A round of both kinds whose pieces are not told cannot be split: it stays plain."""
    text = Text()
    for event in rounds:
        pieces = event.pieces if "".join(event.pieces) == event.text else [event.text]
        drafted = event.drafted if len(pieces) == len(event.drafted) else [all(event.drafted)] * len(pieces)
        for piece, whose in zip(pieces, drafted, strict=True):
            text.append(shown(piece), DRAFTED if whose else None)
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
