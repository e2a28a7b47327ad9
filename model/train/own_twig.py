"""Trains a twig for any supported base on somebody's own conversations, as the paper trains one.

The base is frozen and run only as far as a lesson needs it; the twig's weights are float32, computed in
bfloat16 where the device multiplies it natively. Invariant: which items a step takes, and in which order,
depends on the seed and the step's number alone; resumed or shared among processes, a run is the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.checkpoint import WEIGHTS_FILE, file_sha256, model_id, save_twig
from model.config import ImageFit, TwigConfig
from model.dtypes import resolve_dtype
from model.pictures import tokens_of
from model.pruning import legal_range
from model.train.conversations import Conversation
from model.train.hub_base import Example, HubBase
from model.train.lessons import SHARES, Draft, Lessons, twig_loss
from model.train.loop import Checkpoint, cosine_rate, run_steps
from model.train.processes import Processes
from model.train.twig_module import Twig
from model.twig import HASHED_BYTES


@dataclass(frozen=True)
class TwigRecipe:
    """What decides the weights; the defaults are the paper's for LLaVA-1.5-7B.

    drop_layer: None for three quarters of the base's layers. batch: items a step, over all processes.
    warmup: share of the steps. max_length: tokens of an item, what is longer is cut. draft,
    foresight_weight, pruning_weight: see `model.train.lessons`.
    """

    fork_layer: int = 2
    twig_layers: int = 3
    drop_layer: int | None = None
    learning_rate: float = 1e-4
    warmup: float = 0.03
    passes: float = 1.0
    batch: int = 128
    max_length: int = 2048
    draft: Draft = "text"
    foresight_weight: float = 0.6
    pruning_weight: float = 0.0
    image_fit: ImageFit | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "passes", "batch", "max_length", "twig_layers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1 or min(self.foresight_weight, self.pruning_weight) < 0:
            raise ValueError("warmup must lie in 0..1, and no lesson's weight may be negative")


@dataclass(frozen=True)
class Machine:
    """What decides how fast it goes, and nothing of the weights beyond rounding.

    micro_batch: items computed together in a process. workers: threads that prepare pictures.
    threads: of torch; None leaves it to torch.
    """

    micro_batch: int = 4
    workers: int = 2
    dtype: str = "auto"
    threads: int | None = None
    save_s: float = 600.0


class Settings:
    """The recipe as a part of a checkpoint: a run goes on only as it began."""

    def __init__(self, path: Path, **said: Any) -> None:
        self.path, self.said = path, {name: repr(value) for name, value in said.items()}

    def state_dict(self) -> dict[str, str]:
        return self.said

    def load_state_dict(self, found: dict[str, str]) -> None:
        other = [f"{name} {found.get(name)}" for name in self.said if found.get(name) != self.said[name]]
        if other:
            raise ValueError(
                f"{self.path} is of a run with {', '.join(other)}: give another --runs folder, or remove it"
            )


class OwnTwigRun:
    """A resumable run. runs: where its checkpoint lies."""

    def __init__(
        self,
        base: Path,
        conversations: Sequence[Conversation],
        runs: Path,
        recipe: TwigRecipe,
        machine: Machine,
        processes: Processes,
    ) -> None:
        self.directory, self.conversations, self.recipe = base, conversations, recipe
        self.machine, self.processes = machine, processes
        if machine.threads is not None:
            torch.set_num_threads(machine.threads)
        if recipe.batch % processes.count:
            raise ValueError(f"batch {recipe.batch} does not divide among {processes.count} processes")
        self.steps = int(len(conversations) * recipe.passes) // recipe.batch
        if not self.steps:
            raise ValueError(f"{len(conversations)} items are less than a batch of {recipe.batch}")
        torch.manual_seed(recipe.seed)
        dtype = resolve_dtype(machine.dtype, processes.device)
        self.hub = HubBase(base, dtype=dtype, device=processes.device, image_fit=recipe.image_fit)
        depth = self.hub.config.text_config.num_hidden_layers
        self.drop_layer = round(0.75 * depth) if recipe.drop_layer is None else recipe.drop_layer
        self.frozen = self.hub.frozen(recipe.fork_layer, self.drop_layer)
        self.twig = Twig(self.hub.vlm, recipe.fork_layer, recipe.twig_layers).float().to(processes.device)
        self.shared = processes.shared(self.twig)
        self.lessons = Lessons(recipe.draft, recipe.foresight_weight, pruning_weight=recipe.pruning_weight)
        self.optimizer = torch.optim.AdamW(self.twig.parameters(), recipe.learning_rate, weight_decay=0.0)
        runs.mkdir(parents=True, exist_ok=True)
        settings = Settings(runs / "twig.pt", items=len(conversations), base=base.name, **asdict(recipe))
        self.checkpoint = Checkpoint(
            runs / "twig.pt", settings=settings, twig=self.twig, optimizer=self.optimizer
        )

    def train(self) -> None:
        done = self.checkpoint.load()
        with ThreadPoolExecutor(max(1, self.machine.workers)) as pool:
            self._ahead = _Ahead(pool, self.hub, self.conversations, self)
            run_steps(
                "twig", self.checkpoint, done, self.steps, self._step,
                save_s=self.machine.save_s, lead=self.processes.lead,
            )  # fmt: skip

    def items_of(self, step: int) -> list[int]:
        """Numbers of the items that this process takes in a step."""
        count = len(self.conversations)
        first = step * self.recipe.batch + self.processes.rank
        drawn = range(first, (step + 1) * self.recipe.batch, self.processes.count)
        passes = {number // count for number in drawn}
        orders = {p: np.random.default_rng([self.recipe.seed, p]).permutation(count) for p in passes}
        return [int(orders[number // count][number % count]) for number in drawn]

    def _step(self, step: int) -> dict[str, float]:
        examples = self._ahead.take(step)
        losses, right, tokens = 0.0, 0, 0
        share = float(np.random.default_rng([step, 19]).choice(SHARES))
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(_split(examples, self.machine.micro_batch))
        for part in parts:
            with self._accumulating(part is not parts[-1]), self._autocast():
                reading = self.hub.read(part, self.frozen, self.recipe.max_length)
                answered = len(reading.target)
                loss, logits = twig_loss(self.shared, self.frozen, reading, self.lessons, step, share)
                (loss * answered).backward()
            losses, tokens = losses + float(loss.detach()) * answered, tokens + answered
            right += int((logits.argmax(-1) == reading.target).sum())
        self._update(step, self.processes.total(tokens))
        return {"loss": losses / max(tokens, 1), "right": right / max(tokens, 1)}

    def _update(self, step: int, tokens: int) -> None:
        """Gradients are sums over answer tokens, averaged over processes: divided by all tokens here."""
        for weight in self.twig.parameters():
            if weight.grad is not None:
                weight.grad *= self.processes.count / max(tokens, 1)
        nn.utils.clip_grad_norm_(self.twig.parameters(), 1.0)
        warmup = max(1, round(self.recipe.warmup * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(self.recipe.learning_rate, step, warmup, step / self.steps)
        self.optimizer.step()

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, with the last part."""
        if more and self.shared is not self.twig:
            return self.shared.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.hub.vlm.dtype
        return torch.autocast(self.processes.device.type, dtype, enabled=dtype != torch.float32)

    def write(self, out: Path, draft_tokens: int = 5, draft_threshold: float = 0.6) -> None:
        """The published format, and `twig_config.json` beside it."""
        weights = self.directory / WEIGHTS_FILE
        known = weights.exists() and weights.stat().st_size <= HASHED_BYTES
        config = TwigConfig(
            fork_layer=self.recipe.fork_layer,
            twig_layers=self.recipe.twig_layers,
            drop_layer=self.drop_layer,
            retained_tokens=self._retained_tokens(),
            draft_tokens=draft_tokens,
            draft_threshold=draft_threshold,
            base_model=model_id(self.directory),
            base_sha256=file_sha256(weights) if known else "",
        )
        state = {name: weight.to(torch.bfloat16) for name, weight in self.twig.state_dict().items()}
        save_twig(out, state, self.hub.config.text_config, config)

    def _retained_tokens(self) -> int | None:
        """A third of a picture, where pictures have one size and that is legal: what costs least accuracy."""
        if self.hub.config.model_type != "llava":
            return None
        tokens, _ = tokens_of(self.hub.config)
        low, high = legal_range(self.frozen.depth, tokens, self.frozen.fork_layer, self.drop_layer)
        return round(tokens / 3) if low <= round(tokens / 3) <= high else None


class _Ahead:
    """Prepares the next step's examples while this one is computed."""

    def __init__(
        self, pool: ThreadPoolExecutor, hub: HubBase, conversations: Sequence[Conversation], run: OwnTwigRun
    ) -> None:
        self._pool, self._hub, self._conversations, self._run = pool, hub, conversations, run
        self._waiting: dict[int, list[Future[Example]]] = {}

    def take(self, step: int) -> list[Example]:
        for wanted in (step, step + 1):
            if wanted not in self._waiting and wanted < self._run.steps:
                items = [self._conversations[item] for item in self._run.items_of(wanted)]
                self._waiting[wanted] = [self._pool.submit(self._hub.example, item) for item in items]
        return [future.result() for future in self._waiting.pop(step)]


def _split(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
