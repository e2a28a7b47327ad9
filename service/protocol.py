"""What gateway and worker say to each other through the broker: jobs, events, heartbeats, key names.

Invariant: every message is JSON whose unknown fields an older reader ignores, so the two sides can be
rolled separately; a change that an older reader would misread raises `WIRE_VERSION`, and such a message
is refused by name instead of being misread.
Lies below gateway, broker and worker and knows none of them: no Redis, no HTTP, no `model` package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

WIRE_VERSION = 1

EventType = Literal["started", "token", "done", "error"]
JobState = Literal["queued", "running", "done", "error"]
Priority = Literal["interactive", "batch"]
TERMINAL: frozenset[str] = frozenset({"done", "error"})

# Codes of terminal error events that the queue itself writes; a worker's own code comes from the engine.
CANCELLED = "cancelled"
EXPIRED = "deadline_exceeded"
POISONED = "delivery_limit"


class UnsupportedVersion(ValueError):  # noqa: N818 - a state of the message
    """The message was written by a newer side whose meaning we cannot know."""


class Message(BaseModel):
    """JSON in and out; frozen; unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    def encode(self) -> str:
        return self.model_dump_json()

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        return cls.model_validate_json(raw)


class VersionedMessage(Message):
    v: int = WIRE_VERSION

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        message = super().decode(raw)
        if message.v > WIRE_VERSION:
            raise UnsupportedVersion(f"{cls.__name__} has wire version {message.v}, we read {WIRE_VERSION}")
        return message


# --- a job -------------------------------------------------------------------------------------------


class ImageRef(Message):
    """One prepared picture: raw RGB uint8, row-major, height * width * 3 bytes, at the card's image spec."""

    sha256: str
    height: int
    width: int


class JobParams(Message):
    """Already resolved by the gateway: `retained_tokens` is R-bar (None: the worker's default).

    retained_share: R-bar as a share of M instead, for a card whose M differs from image to image.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    retained_tokens: int | None = None
    retained_share: float | None = None
    speculation: bool = True
    token_map: bool = False


class Turn(Message):
    """Same fields and meaning as `model.request.Turn`."""

    role: Literal["user", "assistant"]
    text: str
    images: int = 0


class Job(VersionedMessage):
    """One accepted request. Immutable: which attempt runs it is the broker's knowledge, see `Lease`.

    created_at, deadline_at: unix seconds by the gateway's clock; only their difference means something to
    others. request_id: the HTTP request's, for logs only. model: whose card
    it was checked against. owner: the name of the API key that made it, which alone may see it; empty where
    no keys are used. predicted_tokens: what it counts in admission and between owners, see `prediction`.
    traceparent: of the gateway's span (W3C Trace Context), empty where none is kept. history: the turns
    before the prompt, only where the card takes them (a worker older than the field would leave them out).
    """

    id: str
    created_at: float
    prompt: str
    images: tuple[ImageRef, ...] = ()
    params: JobParams = Field(default_factory=JobParams)
    deadline_at: float | None = None
    request_id: str = ""
    model: str = ""
    owner: str = ""
    priority: Priority = "interactive"
    predicted_tokens: int = 1
    traceparent: str = ""
    history: tuple[Turn, ...] = ()


# --- its events --------------------------------------------------------------------------------------


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


# --- workers -----------------------------------------------------------------------------------------


class DynamicSize(Message):
    """Same fields and meaning as `model.card.DynamicSize`."""

    multiple: int = Field(ge=1)
    min_pixels: int = Field(ge=1)
    max_pixels: int = Field(ge=1)


class ImageSpec(Message):
    """Same fields and meaning as `model.card.ImageSpec`."""

    height: int
    width: int
    fit: Literal["stretch", "crop", "pad"] = "crop"
    pad_color: tuple[int, int, int] = (122, 116, 104)
    dynamic: DynamicSize | None = None


class ModelCard(Message):
    """Same fields and meaning as `model.card.ModelCard`."""

    model_id: str
    family: str
    image: ImageSpec
    image_tokens: int
    grid: tuple[int, int]
    layers: int
    max_images: int
    max_model_len: int
    quality: dict[str, int] = Field(default_factory=dict)
    retained_min: int = 0
    retained_max: int = 0
    default_retained: int = 0
    speculation: bool = False
    takes_turns: bool = False


class WorkerInfo(VersionedMessage):
    """A heartbeat. tokens_per_s: predicted tokens worked off a busy second (`throughput`), 0 if unknown."""

    worker_id: str
    started_at: float
    card: ModelCard
    max_slots: int
    free_slots: int
    draining: bool = False
    tokens_per_s: float = 0.0


# --- what the broker tells ---------------------------------------------------------------------------


@dataclass(frozen=True)
class JobStatus:
    """`terminal` is set exactly when `state` is done or error. left_s: to the deadline, by Redis's clock."""

    job: Job
    state: JobState
    attempt: int
    last_seq: int
    cancel_requested: bool
    terminal: Event | None
    left_s: float | None = None


@dataclass(frozen=True)
class QueueStats:
    """waiting: never claimed since they were (re)queued; pending: claimed and unfinished.

    oldest_age_s: age of the oldest waiting job, 0 where none waits. dead: length of the dead-letter list.
    memory_*_bytes: the broker's own; a limit of 0 is none. reserved_tokens: predicted, of all unfinished
    jobs; waiting_tokens: of those that wait.
    """

    waiting: int = 0
    pending: int = 0
    oldest_age_s: float = 0.0
    dead: int = 0
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    reserved_tokens: int = 0
    waiting_tokens: int = 0


@dataclass(frozen=True)
class Keys:
    """Every Redis key of one queue; the hash tag keeps them on one shard."""

    shard: str = "q"

    @property
    def prefix(self) -> str:
        return "{" + self.shard + "}:"

    @property
    def jobs(self) -> str:
        return self.prefix + "jobs"

    @property
    def dead(self) -> str:
        return self.prefix + "dead"

    @property
    def wake(self) -> str:
        """A list with one element a submitted or released job: idle workers block on it."""
        return self.prefix + "wake"

    def wakes(self, model: str) -> list[str]:
        """The lists on which a worker of this model blocks: its own, and the one that wakes any."""
        return [f"{self.wake}:{model}", self.wake] if model else [self.wake]

    @property
    def workers(self) -> str:
        """The set of worker ids that may be alive; `worker(id)` with its TTL decides."""
        return self.prefix + "workers"

    @property
    def generation(self) -> str:
        """The name of the data in this server, see `data_name` in common.lua."""
        return self.prefix + "generation"

    def job(self, job_id: str) -> str:
        return f"{self.prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        return f"{self.prefix}events:{job_id}"

    def idempotency(self, key: str) -> str:
        return f"{self.prefix}idempotency:{key}"

    def blob(self, sha256: str) -> str:
        return f"{self.prefix}blob:{sha256}"

    def worker(self, worker_id: str) -> str:
        return f"{self.prefix}worker:{worker_id}"

    def inbox(self, gateway_id: str) -> str:
        """A stream of one entry: a gateway wakes its own blocked reader through it."""
        return f"{self.prefix}gateway:{gateway_id}"
