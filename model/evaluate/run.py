"""Asks items in one way after another on one engine, and marks what comes back.

A few pictures at a time go through all ways, so that the engine's memory of pictures serves each of them: the
tower, the trunk and the twig see a picture once, not once a way. Drafts are not governed: what is accepted
would depend on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.checkpoint import resolve
from model.config import EngineConfig
from model.engine import Engine
from model.evaluate.answers import Answer, Answers, fingerprint
from model.evaluate.intervals import ahead, tally
from model.evaluate.items import Item
from model.evaluate.marks import description_parts, task_scores
from model.evaluate.tables import with_rel_acc
from model.evaluate.ways import NONE, Way, all_ways, default_budgets
from model.request import Request, Result, SamplingParams
from model.scorers import SCORERS, Scorer, remembering

MAX_TOKENS = 128
BATCH = 16
ITEMS_AT_A_TIME = 80
IMAGE_CACHE_BYTES = 512 << 20
Tick = Callable[[int], object]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Loader:
    """A checkpoint and how it is run; arguments as `Engine.from_pretrained` has them."""

    name: str
    twig: str | None
    device: str
    dtype: str
    threads: int | None
    fork_layer: int | None = None
    drop_layer: int | None = None

    def engine(self, **config: Any) -> Engine:
        """`config` goes to EngineConfig."""
        settings: dict[str, Any] = {
            "threads": self.threads,
            "max_batch": BATCH,
            "governor": False,
            "image_cache_bytes": IMAGE_CACHE_BYTES,
        }
        return Engine.from_pretrained(
            self.name,
            self.twig,
            device=self.device,
            dtype=self.dtype,
            config=EngineConfig(**(settings | config)),
            fork_layer=self.fork_layer,
            drop_layer=self.drop_layer,
        )

    @property
    def fingerprint(self) -> str:
        said = f"{self.dtype} {self.fork_layer} {self.drop_layer} {MAX_TOKENS}"
        return fingerprint(*resolve(self.name, self.twig), said=said)


class Asker:
    """One engine, tuned to one way after another; what is answered already is not asked again."""

    def __init__(self, engine: Engine, answers: Answers) -> None:
        self.engine, self.answers = engine, answers
        self.prunes = engine.card.retained_min < engine.card.image_tokens

    def ask(self, ways: Sequence[Way], items: Sequence[Item], tick: Tick = lambda _: None) -> None:
        for start in range(0, len(items), ITEMS_AT_A_TIME):
            some = items[start : start + ITEMS_AT_A_TIME]
            # Remembered for no longer than these pictures are.
            scorers = {name: remembering(scorer) for name, scorer in SCORERS.items()}
            for way in ways:
                self._ask_some(way, some, scorers[way.method if way.method != NONE else "ttp"])
                tick(len(some))

    def _ask_some(self, way: Way, items: Sequence[Item], scorer: Scorer) -> None:
        missing = {item.key: item for item in items if self.answers.get(way.name, item.key) is None}
        if not missing:
            return
        self.engine.tune(scorer, way.drafts, way.threshold)
        results = ask(self.engine, [self._request(way, item) for item in missing.values()])
        told = map(Answer.of, results)
        self.answers.put(way.name, dict(zip(missing, told, strict=True)))

    def _request(self, way: Way, item: Item) -> Request:
        card, fixed = self.engine.card, self.engine.card.image.dynamic is None
        budget: dict[str, Any] = {"retained_tokens": way.retained}
        if way.method == NONE:
            budget = {"retained_share": 1.0} if self.prunes else {}
        elif not fixed:  # a budget of the card's picture says nothing of another
            budget = {"retained_share": way.retained / card.image_tokens}
        return Request(
            prompt=item.turn.prompt,
            images=[item.open_picture()],
            sampling=SamplingParams(max_tokens=MAX_TOKENS),
            **budget,
        )

    def answered(self, way: Way, items: Sequence[Item]) -> list[Answer]:
        """Of a way in which all the items have been asked."""
        found = [self.answers.get(way.name, item.key) for item in items]
        return [answer for answer in found if answer is not None]

    def entry(self, way: Way, items: Sequence[Item]) -> Entry:
        """Marks of a way in which all the items have been asked."""
        answers = self.answered(way, items)
        drafted, accepted, rounds, tokens = (
            sum(getattr(answer, name) for answer in answers)
            for name in ("drafted", "accepted", "rounds", "tokens")
        )
        took = sum(answer.decode_s for answer in answers)
        return {
            "method": way.method,
            "retained_tokens": way.retained,
            "draft_tokens": way.drafts,
            "draft_threshold": way.threshold,
            "tasks": task_scores(items, answers),
            "description": description_parts(items, answers),
            "acceptance": round(accepted / drafted, 4) if drafted else 0.0,
            # accepted drafts and the base's own token
            "tokens_per_round": round(accepted / rounds + 1, 3) if rounds else 1.0,
            "tokens_per_s": round(tokens / took, 1) if took else 0.0,
        }

    def plan(self, methods: Sequence[str] | None, budgets: Sequence[int] | None, probe: Item) -> list[Way]:
        """methods: None for all that this model can be pruned by. Raises ValueError where one cannot."""
        card = self.engine.card
        drafts, threshold = self.engine.drafting
        if not self.prunes:
            if methods:
                raise ValueError("there is no twig, so nothing can be pruned: give --twig, or no method")
            return all_ways(card, [], [], drafts, threshold)
        budgets = list(budgets) if budgets else default_budgets(card)
        if not budgets:
            raise ValueError(
                f"no default budget is legal for this twig: give one of {card.retained_min} to "
                f"{card.retained_max}"
            )
        if methods is None:
            methods = [name for name in SCORERS if self._can(Way(name, budgets[0], 0, 0.0), probe)]
        return all_ways(card, methods, budgets, drafts, threshold)

    def _can(self, way: Way, probe: Item) -> bool:
        """Whether the family shows what the method ranks by."""
        if way.method == "ttp":
            return True
        self.engine.tune(SCORERS[way.method], way.drafts, way.threshold)
        (result,) = self.engine.generate([self._request(way, probe)])
        return result.error is None


def ask(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """One result a request, in order; the engine batches as it can. Raises RuntimeError if one fails."""
    results = engine.generate(requests)
    for number, result in enumerate(results):
        if result.error:
            raise RuntimeError(f"{requests[number].prompt!r} failed: {result.error}")
    return results


def evaluate_ways(
    asker: Asker, items: Sequence[Item], ways: Sequence[Way], tick: Tick = lambda _: None
) -> list[Entry]:
    """ways: the unpruned one first. `ttp_ahead`: see `model.evaluate.intervals`."""
    asker.ask(ways, items, tick)
    entries = [asker.entry(way, items) for way in ways]
    entries = with_rel_acc(entries, entries[0])
    tallies = {(way.method, way.retained): tally(items, asker.answered(way, items)) for way in ways}
    whole = tallies[ways[0].method, ways[0].retained]
    for entry in entries:
        method, budget = entry["method"], entry["retained_tokens"]
        if method not in (NONE, "ttp") and (twig := tallies.get(("ttp", budget))):
            entry["ttp_ahead"] = ahead(twig, tallies[method, budget], whole)
    return entries
