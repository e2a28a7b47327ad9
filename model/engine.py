"""The engine: requests in, tokens out, continuous batching inside.

Each `step` drops what was aborted, lets waiting requests in while slots are free (vision, prefill), and
decodes one round for all that run. Invariant: every request that `add` accepted leaves through exactly
one `StepOutput` with a result, also when the model fails under it.
Names no model family, touches no tensor, and knows nothing of HTTP or queues.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model.adapters import load_adapter
from model.adapters.base import Adapter
from model.admission import Admission
from model.card import ModelCard
from model.checkpoint import resolve
from model.config import EngineConfig
from model.decoder import DecoderShape
from model.detokenize import Detokenizer
from model.device import device_of
from model.dtypes import emulated, resolve_dtype
from model.entrance import Entrance
from model.generation import Generation, Times
from model.governor import Governor
from model.limits import card_of, kv_budget, limits_of
from model.native.library import decodes
from model.randomness import sampler_of
from model.request import FinishReason, Request, RequestError, Result, SamplingParams, StepOutput
from model.rounds import Rounds
from model.runner import RowOutcome, Runner
from model.scheduler import Scheduler
from model.scorers import SCORERS, Scorer
from model.stats import EngineStats
from model.stops import StopStrings
from model.twig import Twig, load_twig

__all__ = ["Engine", "EngineConfig", "EngineStats", "Request", "RequestError", "Result", "SamplingParams"]

Clock = Callable[[], float]
log = logging.getLogger(__name__)


class Engine:
    """Use `from_pretrained`. Not thread-safe: one thread owns an engine."""

    def __init__(
        self,
        adapter: Adapter,
        twig: Twig | None,
        config: EngineConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        clock: Clock = time.monotonic,
    ) -> None:
        twig_config = twig.config if twig else None
        limits = limits_of(adapter, twig_config, config)
        self.card: ModelCard = card_of(adapter, twig_config, config, limits)
        self._memory = kv_budget(adapter, twig_config, config, limits, dtype.itemsize)
        self._admission = Admission(adapter, twig_config, len(adapter.layers), limits, self._memory)
        self.dtype = str(dtype).removeprefix("torch.")
        self._adapter, self._limits, self._clock = adapter, limits, clock
        self._scheduler = Scheduler(config.max_batch)
        self._runner = Runner(
            adapter,
            twig,
            slots=self._memory.held.rows,
            max_model_len=limits.max_model_len,
            draft_tokens=limits.draft_tokens,
            draft_threshold=limits.draft_threshold,
            scorer=SCORERS[config.scorer],
            kernels=config.kernels,
            image_cache_bytes=config.image_cache_bytes,
            batch_invariant=config.batch_invariant,
            dtype=dtype,
            device=device,
        )
        if config.batch_invariant and self.kernels == "torch":
            raise ValueError("batch_invariant needs native kernels on a CPU: torch's round by batch shape")
        if self.kernels == "torch" and emulated(dtype, device):
            log.warning(
                "bfloat16 without native kernels is emulated on this CPU: float32 would be many times faster"
            )
        # Where nothing is ever drafted there is nothing to govern.
        governed = config.governor and twig is not None and limits.draft_tokens > 0
        governor = Governor(limits.draft_tokens, clock) if governed else None
        self._rounds = Rounds(self._runner, governor)
        self._entrance = Entrance(self._scheduler, self._runner, self._memory, clock)
        self._outputs: dict[str, StepOutput] = {}
        self._batch_size = 0

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        twig: str | Path | None = None,
        *,
        device: str = "cpu",
        dtype: str = "bfloat16",
        config: EngineConfig | None = None,
        fork_layer: int | None = None,
        drop_layer: int | None = None,
        clock: Clock = time.monotonic,
    ) -> Engine:
        """Loads a base and, if given, its twig. "embedded" stands for the shipped pair.

        fork_layer, drop_layer: K and F, over those of twig_config.json. Raises CheckpointError, and
        ValueError where the device is not here.
        """
        config = config or EngineConfig()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        base_path, twig_path = resolve(base, twig)
        where = device_of(device)
        kind = resolve_dtype(dtype, where, native=decodes(config.kernels, where))
        with torch.inference_mode():
            adapter = load_adapter(base_path, dtype=kind, device=where, config=config)
            loaded = load_twig(
                twig_path,
                base_path,
                len(adapter.layers),
                adapter.shape,
                fork_layer=fork_layer,
                drop_layer=drop_layer,
                dtype=kind,
                device=where,
            )
            return cls(adapter, loaded, config, dtype=kind, device=where, clock=clock)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Runs requests to their end and returns their results in order; needs an engine without work."""
        if self.has_work():
            raise RuntimeError("generate needs an engine without work: use add and step")
        generations = [self._accept(request) for request in requests]
        ids = [generation.request_id for generation in generations]
        if len(set(ids)) < len(ids):
            raise RequestError("two requests have the same request_id", param="request_id")
        for generation in generations:
            self._scheduler.queue(generation)
        results: dict[str, Result] = {}
        try:
            while self.has_work():
                results |= {out.request_id: out.result for out in self.step() if out.result}
        except BaseException:  # Ctrl-C: whoever catches it finds an engine without work
            self._runner.cache.clear()
            self._scheduler.clear()
            raise
        return [results[request_id] for request_id in ids]

    def add(self, request: Request) -> str:
        """Checks and queues; returns the request id. Raises RequestError (a ValueError with `.param`)."""
        generation = self._accept(request)
        self._scheduler.queue(generation)
        return generation.request_id

    def abort(self, request_id: str) -> None:
        """Its last StepOutput (finish_reason "abort") comes with the next step(). Unknown ids are ignored."""
        self._scheduler.abort(request_id)

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def step(self) -> list[StepOutput]:
        """One round; returns one output for each request that got tokens or ended."""
        self._outputs = {}
        self._drop_aborted()
        self._entrance.let_in(self._end)
        self._decode()
        if not self.has_work():
            self.check_integrity()
        return list(self._outputs.values())

    def next_logits(self, request: Request) -> torch.Tensor:
        """float32 [vocabulary]: what the base says after the prompt and resume_token_ids, for diagnosis.

        Needs an engine without work.
        """
        if self.has_work():
            raise RuntimeError("next_logits needs an engine without work")
        prompt = self._admission.prompt_so_far(request)
        self._entrance.make_room([prompt.kv])
        return self._runner.next_logits(prompt, self._runner.encode(prompt))

    def tune(self, scorer: Scorer, draft_tokens: int, draft_threshold: float) -> None:
        """For measuring: another way of pruning and drafting on the weights that are loaded.

        Needs an engine without work, and no more drafts than it was loaded for.
        """
        if self.has_work():
            raise RuntimeError("tune needs an engine without work")
        if not 0 <= draft_tokens <= self._limits.draft_tokens:
            raise ValueError(f"draft_tokens must lie in 0..{self._limits.draft_tokens}, not {draft_tokens}")
        self._runner.tune(scorer, draft_tokens, draft_threshold)

    @property
    def drafting(self) -> tuple[int, float]:
        """The most drafts a round, and the probability under which drafting stops, as loaded."""
        return self._limits.draft_tokens, self._limits.draft_threshold

    @property
    def governed(self) -> bool:
        return self._rounds.governor is not None

    @property
    def kernels(self) -> str:
        """What decodes: `native` code, or `torch`."""
        return self._runner.vlm.kernels

    @property
    def decoder(self) -> tuple[DecoderShape, int]:
        """The base's shape, and how many layers it has."""
        return self._adapter.shape, len(self._adapter.layers)

    def stats(self) -> EngineStats:
        return EngineStats.of(self._scheduler, self._runner, self._memory, self._batch_size)

    def check_integrity(self) -> None:
        """Asserts that an engine without work holds nothing in its cache."""
        if self.has_work():
            raise AssertionError("the engine still has work")
        self._runner.cache.check_empty()

    def _accept(self, request: Request) -> Generation:
        prompt = self._admission.prompt(request)
        request_id = request.request_id or uuid.uuid4().hex
        if self._scheduler.knows(request_id):
            raise RequestError(f"request_id {request_id!r} is already in the engine", param="request_id")
        return Generation(
            request_id=request_id,
            prompt=prompt,
            max_tokens=request.sampling.max_tokens,
            eos=frozenset() if request.sampling.ignore_eos else self._adapter.eos_token_ids,
            detokenizer=Detokenizer(self._adapter.decode),
            times=Times(added=self._clock()),
            sampler=sampler_of(request.sampling, request_id),
            stops=StopStrings(request.sampling.stop),
        )

    def _drop_aborted(self) -> None:
        waited, slots = self._scheduler.take_aborted()
        for generation in waited:
            self._end(generation, "abort")
        for slot in reversed(slots):
            self._leave(slot, "abort")

    def _decode(self) -> None:
        running = self._scheduler.running
        self._batch_size = len(running)
        if not running:
            return
        try:
            outcomes = self._rounds(running)
        except Exception as error:
            log.exception("a round of %d sequences failed", len(running))
            self._fail_all(error)
            return
        now = self._clock()
        for generation, outcome in zip(running, outcomes, strict=True):
            if outcome.overflowed:
                generation.fail(OverflowError(f"the model's states are not finite in {self.dtype}"))
            else:
                self._emit(generation, outcome, now)
        for slot in reversed(range(len(running))):
            if running[slot].finish_reason is not None:
                self._leave(slot)

    def _emit(self, generation: Generation, outcome: RowOutcome, now: float) -> None:
        try:
            generation.note_read(outcome.tokens, outcome.read)
            generation.emit(outcome.tokens, outcome.drafted, self._output(generation), now)
            generation.count_stop(outcome.draft_stop)
        except Exception as error:  # a tokenizer that cannot decode what the base said
            log.exception("the text of request %s failed", generation.request_id)
            generation.fail(error)

    def _fail_all(self, error: Exception) -> None:
        """The cache of a broken round is worth nothing: all that ran end, the next ones start clean."""
        self._runner.cache.clear()
        while self._scheduler.running:
            generation = self._scheduler.leave(len(self._scheduler.running) - 1)
            generation.fail(error)
            self._end(generation)

    def _leave(self, slot: int, reason: FinishReason | None = None) -> None:
        self._runner.cache.release(slot)
        self._end(self._scheduler.leave(slot), reason)

    def _end(self, generation: Generation, reason: FinishReason | None = None) -> None:
        generation.finish_reason = reason or generation.finish_reason
        generation.finish(self._output(generation), self._clock())

    def _output(self, generation: Generation) -> StepOutput:
        return self._outputs.setdefault(generation.request_id, StepOutput(generation.request_id))
