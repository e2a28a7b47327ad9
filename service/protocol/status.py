"""What the broker knows of a job and of the queue. Nobody sends these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.protocol.events import Event
from service.protocol.job import Job

JobState = Literal["queued", "running", "done", "error"]


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
