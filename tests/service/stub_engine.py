"""An engine without a network: its words follow from the prompt alone, so every run can be predicted.

Behind the methods of `model.engine.Engine` that the worker uses. Prompts that begin with "refuse", "crash",
"hang" or "kill" (the process, by SIGKILL) do what they say.
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from dataclasses import dataclass, field

from model.card import ImageSpec, ModelCard
from model.request import Request, RequestError, Result, StepOutput

CARD = ModelCard(
    model_id="stub",
    family="stub",
    image=ImageSpec(4, 4, "stretch"),
    image_tokens=16,
    grid=(4, 4),
    layers=8,
    max_images=2,
    max_model_len=4096,
    quality={"fast": 4, "balanced": 6, "best": 8, "exact": 16},
    retained_min=2,
    retained_max=14,
    default_retained=6,
    speculation=True,
    takes_turns=True,
)


def expected_tokens(prompt: str, count: int) -> list[int]:
    seed = zlib.crc32(prompt.encode())
    return [(seed + 7919 * i) % 10_000 for i in range(count)]


def text_of(token_ids: list[int] | tuple[int, ...]) -> str:
    return "".join(f" w{token}" for token in token_ids)


@dataclass(frozen=True)
class StubStats:
    running: int
    waiting: int
    batch_size: int
    kv_bytes_used: int
    kv_bytes_capacity: int = 1000


@dataclass
class _Sequence:
    request: Request
    token_ids: list[int]
    added_at: float = field(default_factory=time.monotonic)
    aborted: bool = False
    prefilled: bool = False


class StubEngine:
    """step_s: how long a round takes, whatever is in it. prefill_s: how much longer with a new request."""

    card = CARD

    def __init__(self, step_s: float = 0.0, prefill_s: float = 0.0) -> None:
        self._step_s = step_s
        self._prefill_s = prefill_s
        self._sequences: dict[str, _Sequence] = {}
        self.seen: list[Request] = []
        self.waiting = 0  # as where the next one has no memory yet

    def add(self, request: Request) -> str:
        if request.prompt.startswith("refuse"):
            raise RequestError("the prompt is too long", "prompt")
        assert request.request_id is not None
        if request.request_id in self._sequences:
            raise RequestError(f"{request.request_id} is already in the engine", "request_id")
        self.seen.append(request)
        self._sequences[request.request_id] = _Sequence(request, list(request.resume_token_ids))
        return request.request_id

    def abort(self, request_id: str) -> None:
        if request_id in self._sequences:
            self._sequences[request_id].aborted = True

    def has_work(self) -> bool:
        return bool(self._sequences)

    def stats(self) -> StubStats:
        count = len(self._sequences)
        return StubStats(count, self.waiting, count, sum(len(s.token_ids) for s in self._sequences.values()))

    def step(self) -> list[StepOutput]:
        if self._step_s:
            time.sleep(self._step_s)
        if self._prefill_s and any(not sequence.prefilled for sequence in self._sequences.values()):
            time.sleep(self._prefill_s)
        for sequence in self._sequences.values():
            sequence.prefilled = True
        outputs = [self._advance(key, sequence) for key, sequence in list(self._sequences.items())]
        for output in outputs:
            if output.result is not None:
                del self._sequences[output.request_id]
        return outputs

    def _advance(self, key: str, sequence: _Sequence) -> StepOutput:
        prompt, limit = sequence.request.prompt, sequence.request.sampling.max_tokens
        if prompt.startswith("crash"):
            raise RuntimeError("device lost")
        if prompt.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt.startswith("hang"):
            time.sleep(3600)
        if sequence.aborted:
            return StepOutput(key, result=self._result(key, sequence, "abort"))
        begin = len(sequence.token_ids)
        new = expected_tokens(prompt, limit)[begin : begin + 1 + begin % 3]
        sequence.token_ids += new
        drafted = [True] * (len(new) - 1) + [False]
        ended = len(sequence.token_ids) >= limit
        result = self._result(key, sequence, "length") if ended else None
        return StepOutput(key, new, drafted, text_of(new), result, [text_of([token]) for token in new])

    def _result(self, key: str, sequence: _Sequence, reason: str) -> Result:
        image_tokens = len(sequence.request.images) * CARD.image_tokens
        asked = sequence.request.retained_tokens
        return Result(
            request_id=key,
            token_ids=list(sequence.token_ids),
            text=text_of(sequence.token_ids),
            finish_reason=reason,  # type: ignore[arg-type]
            prompt_tokens=5 + image_tokens,
            image_tokens=image_tokens,
            kept_tokens=image_tokens // 2,
            kept_indices=list(range(image_tokens // 2)),
            token_scores=[0.5] * image_tokens,
            retained_tokens=float(asked if asked is not None else CARD.default_retained),
            draft_rounds=3,
            draft_tokens=9,
            accepted_tokens=6,
            accepted_per_position=[3, 2, 1],
            draft_stops={"budget": 2, "confidence": 1},
            decode_s=time.monotonic() - sequence.added_at,
        )
