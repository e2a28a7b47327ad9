"""What a job's events tell, in the words of the HTTP API: token events, the whole answer, or an error.

Invariant: plain and streamed answers are made here, by the same code, from the same terminal event.
Must not know: where events come from, how they are sent on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from service.errors import ApiError, BadRequest, Cancelled, DeadlineExceeded, ImpossibleRetained, JobFailed
from service.protocol import CANCELLED, EXPIRED, DoneData, ErrorData, Event, Job, TokenData
from service.schemas import (
    Description,
    Metrics,
    PromptTokensDetails,
    SpeculativeDecoding,
    TokenEvent,
    TokenMap,
    Usage,
)

SERVER_TIMING = "Server-Timing"


class Answer:
    """One job as its gateway sees it. `arrived_at` is on `clock`: when the HTTP request came in.

    replayed: the job was another request's, so its times are the worker's to tell, not ours to measure.
    """

    def __init__(
        self,
        job: Job,
        arrived_at: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        replayed: bool = False,
    ) -> None:
        self._job = job
        self._arrived_at = arrived_at
        self._clock = clock
        self._replayed = replayed
        self.ttft_s: float | None = None
        self.ended = False
        self.last_id = "0-0"

    def see(self, event: Event) -> None:
        self.ended = event.terminal
        self.last_id = event.id
        if event.type == "token" and self.ttft_s is None and not self._replayed:
            self.ttft_s = self._clock() - self._arrived_at

    def elapsed_s(self) -> float:
        return self._clock() - self._arrived_at

    def description(self, event: Event) -> Description:
        """Of the terminal `done` event."""
        done = DoneData.model_validate(event.data)
        return Description(
            id=self._job.id,
            created=int(self._job.created_at),
            model=done.model,
            text=done.text,
            finish_reason=done.finish_reason,
            usage=_usage(done),
            metrics=self._metrics(done, event.attempt),
            token_map=_token_map(done) if self._job.params.token_map else None,
        )

    def _metrics(self, done: DoneData, attempt: int) -> Metrics:
        ttft_s = done.queue_s + done.ttft_s if self.ttft_s is None else self.ttft_s
        # The first token of an attempt comes out of its prefill.
        decoded = len(done.token_ids) - done.resumed_tokens - 1
        rate = decoded / done.decode_s if decoded > 0 and done.decode_s > 0 else 0.0
        return Metrics(
            queue_ms=_ms(done.queue_s),
            encode_ms=_ms(done.encode_s),
            prefill_ms=_ms(done.prefill_s),
            decode_ms=_ms(done.decode_s),
            time_to_first_token_ms=_ms(ttft_s),
            tokens_per_second=round(rate, 3),
            batch_size=done.batch_size,
            attempt=attempt,
            speculative_decoding=_speculative_decoding(done),
        )


def server_timing(metrics: Metrics, total_s: float) -> dict[str, str]:
    """The header by which browsers and tracing tools show where the time went (W3C Server Timing)."""
    spent = {
        "queue": metrics.queue_ms,
        "encode": metrics.encode_ms,
        "prefill": metrics.prefill_ms,
        "decode": metrics.decode_ms,
        "total": _ms(total_s),
    }
    return {SERVER_TIMING: ", ".join(f"{name};dur={ms:g}" for name, ms in spent.items())}


def token_event(event: Event) -> TokenEvent:
    data = TokenData.model_validate(event.data)
    return TokenEvent(
        text=data.text,
        token_ids=list(data.token_ids),
        drafted=list(data.drafted),
        pieces=list(data.pieces),
    )


def description_json(description: Description) -> dict[str, Any]:
    return description.model_dump(mode="json", exclude=_unasked(description))


def description_text(description: Description) -> str:
    """`description_json` as JSON, written by pydantic itself."""
    return description.model_dump_json(exclude=_unasked(description))


def _unasked(description: Description) -> set[str] | None:
    """Without the token map where none was asked for; a token map's own null stays."""
    return {"token_map"} if description.token_map is None else None


def job_error(event: Event) -> ApiError:
    """Of the terminal `error` event."""
    data = ErrorData.model_validate(event.data)
    if data.code == EXPIRED:
        return DeadlineExceeded(data.message)
    if data.code == CANCELLED:
        return Cancelled(data.message)
    if data.type == "invalid_request_error" and data.param == "retained_tokens":
        return ImpossibleRetained(data.message, param=data.param)
    if data.type == "invalid_request_error":
        return BadRequest(data.message, param=data.param, code=data.code)
    return JobFailed(data.message, param=data.param, code=data.code)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _usage(done: DoneData) -> Usage:
    retained = min(round(done.retained_tokens), done.image_tokens)
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=len(done.token_ids),
        total_tokens=done.prompt_tokens + len(done.token_ids),
        prompt_tokens_details=PromptTokensDetails(
            image_tokens=done.image_tokens,
            retained_image_tokens=retained,
            pruned_image_tokens=done.image_tokens - retained,
        ),
    )


def _speculative_decoding(done: DoneData) -> SpeculativeDecoding:
    drafts, accepted, rounds = done.draft_tokens, done.accepted_tokens, done.draft_rounds
    return SpeculativeDecoding(
        num_draft_tokens=drafts,
        num_accepted_draft_tokens=accepted,
        draft_acceptance_rate=round(accepted / drafts, 4) if drafts else 0.0,
        mean_acceptance_length=round(1 + accepted / rounds, 4) if rounds else 1.0,
    )


def _token_map(done: DoneData) -> TokenMap | None:
    if done.grid is None or done.kept_indices is None:
        return None
    scores = None if done.token_scores is None else list(done.token_scores)
    return TokenMap(grid=done.grid, kept=list(done.kept_indices), scores=scores)
