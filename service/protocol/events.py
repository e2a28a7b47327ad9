"""What is told of a job while it runs, and how it ends."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from service.protocol.message import Message, VersionedMessage

EventType = Literal["started", "token", "done", "error"]
TERMINAL: frozenset[str] = frozenset({"done", "error"})

# Codes of terminal error events that the queue itself writes; a worker's own code comes from the engine.
CANCELLED = "cancelled"
EXPIRED = "deadline_exceeded"
POISONED = "delivery_limit"


class Event(VersionedMessage):
    """`seq` counts 1, 2, 3, ... over the whole job, across attempts, without a gap.

    `attempt` never falls, so `<attempt>-<seq>` is ordered: it is the SSE id and the Redis stream id.
    run: the random name of the claim that wrote it; two of one attempt mean that the queue lost data.
    data: the JSON of `StartedData`, `TokenData`, `DoneData` or `ErrorData`, by type.
    """

    seq: int
    attempt: int
    type: EventType
    data: dict[str, Any] = Field(default_factory=dict)
    run: str = ""

    @property
    def id(self) -> str:
        return f"{self.attempt}-{self.seq}"

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


_EVENT_ID = re.compile(r"(\d{1,9})-(\d{1,9})")


# Added to a job's attempts wherever it is put back into a queue that lost it: others may have read events of
# attempts that nobody knows of any more, and a number given again would make one id name two events. No job
# is claimed so often.
ATTEMPTS_APART = 1000


def parse_event_id(text: str) -> tuple[int, int]:
    """(attempt, seq) of an SSE `Last-Event-ID`; ValueError where it is not one of ours."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise ValueError(f"not an event id: {text[:40]!r}")
    return int(match[1]), int(match[2])


class StartedData(Message):
    """An attempt began. Not shown to clients: it tells the gateway when queueing ended."""

    worker_id: str
    resumed_tokens: int = 0


class TokenData(Message):
    """One decode round: the new tokens only. drafted[i]: token i was an accepted draft of the twig.

    pieces: see `model.request.StepOutput`; empty from a worker that is older than the field.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    drafted: tuple[bool, ...] = ()
    pieces: tuple[str, ...] = ()


class ErrorData(Message):
    """`type` is one of OpenAI's error types; `param` names the field at fault; never a traceback."""

    type: str = "server_error"
    message: str
    code: str | None = None
    param: str | None = None


class DoneData(Message):
    """The whole answer. Tokens and times are those of `model.request.Result`; times are the last attempt's.

    text, token_ids: from the first token of the first attempt on. queue_s: from `Job.created_at` to
    the attempt's claim. resumed_tokens: of token_ids, those of earlier attempts. kept_indices,
    token_scores, grid: only where the job asked for the token map.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    model: str = ""
    worker_id: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    kept_tokens: int = 0
    retained_tokens: float = 0.0
    draft_rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    resumed_tokens: int = 0
    batch_size: int = 1
    queue_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    grid: tuple[int, int] | None = None
    kept_indices: tuple[int, ...] | None = None
    token_scores: tuple[float, ...] | None = None
