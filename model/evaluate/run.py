"""Runs items through engines, one a way of pruning, and marks what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model.config import EngineConfig
from model.engine import Engine
from model.evaluate.items import Item
from model.evaluate.marks import description_parts, task_scores
from model.evaluate.tables import with_rel_acc
from model.request import Request, Result, SamplingParams

MAX_TOKENS = 128
NONE = "none"  # the method that prunes nothing
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

    def engine(self, scorer: str = "ttp", **config: Any) -> Engine:
        """One whose pruning is `scorer`'s; `config` goes to EngineConfig."""
        return Engine.from_pretrained(
            self.name,
            self.twig,
            device=self.device,
            dtype=self.dtype,
            config=EngineConfig(
                scorer=scorer,
                threads=self.threads,
                # the others may look at base layers, which native code does not show
                kernels="auto" if scorer == "ttp" else "torch",
                **config,
            ),
            fork_layer=self.fork_layer,
            drop_layer=self.drop_layer,
        )


def ask(engine: Engine, items: Sequence[Item], retained_tokens: int, tick: Tick) -> list[Result]:
    """One result an item, in order; the engine batches as it can. Raises RuntimeError if one fails."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    order = {}
    for number, item in enumerate(items):
        request = Request(
            prompt=item.turn.prompt,
            images=[item.picture],
            sampling=sampling,
            retained_tokens=retained_tokens,
        )
        order[engine.add(request)] = number
    results: dict[int, Result] = {}
    while engine.has_work():
        for output in engine.step():
            if output.result is None:
                continue
            if output.result.error:
                raise RuntimeError(f"item {order[output.request_id]} failed: {output.result.error}")
            results[order[output.request_id]] = output.result
            tick(1)
    return [results[number] for number in range(len(items))]


def evaluate_methods(
    loader: Loader,
    items: Sequence[Item],
    methods: Sequence[str],
    budgets: Sequence[int],
    tick: Tick = lambda _: None,
) -> list[Entry]:
    """The unpruned model first, then each method at each budget R-bar."""
    engine = loader.engine()
    unpruned = evaluate(engine, items, NONE, engine.card.image_tokens, tick)
    entries = [unpruned]
    for method in methods:
        engine = loader.engine(scorer=method)
        entries += [evaluate(engine, items, method, budget, tick) for budget in budgets]
    return with_rel_acc(entries, unpruned)


def evaluate(engine: Engine, items: Sequence[Item], method: str, budget: int, tick: Tick) -> Entry:
    results = ask(engine, items, budget, tick)
    drafted = sum(result.draft_tokens for result in results)
    accepted = sum(result.accepted_tokens for result in results)
    rounds = sum(result.draft_rounds for result in results)
    return {
        "method": method,
        "retained_tokens": budget,
        "tasks": task_scores(items, results),
        "description": description_parts(items, results),
        "acceptance": round(accepted / drafted, 4) if drafted else 0.0,
        # accepted drafts and the base's own token
        "tokens_per_round": round(accepted / rounds + 1, 3) if rounds else 1.0,
    }
