"""What gateway and worker say to each other through the broker: jobs, events, heartbeats, key names.

Invariant: every message is JSON whose unknown fields an older reader ignores, so the two sides can be
rolled separately; a change that an older reader would misread raises `WIRE_VERSION`, and such a message
is refused by name instead of being misread.
Lies below gateway, broker and worker and knows none of them: no Redis, no HTTP, no `model` package.
"""

from __future__ import annotations

from service.protocol.events import (
    ATTEMPTS_APART,
    CANCELLED,
    EXPIRED,
    POISONED,
    TERMINAL,
    DoneData,
    ErrorData,
    Event,
    EventType,
    StartedData,
    TokenData,
    parse_event_id,
)
from service.protocol.job import ImageRef, Job, JobParams, Priority, Turn, picture_name
from service.protocol.keys import Keys
from service.protocol.message import WIRE_VERSION, Message, UnsupportedVersion, VersionedMessage
from service.protocol.status import JobState, JobStatus, QueueStats
from service.protocol.workers import DynamicSize, ImageSpec, ModelCard, WorkerInfo

__all__ = [
    "ATTEMPTS_APART",
    "CANCELLED",
    "EXPIRED",
    "POISONED",
    "TERMINAL",
    "WIRE_VERSION",
    "DoneData",
    "DynamicSize",
    "ErrorData",
    "Event",
    "EventType",
    "ImageRef",
    "ImageSpec",
    "Job",
    "JobParams",
    "JobState",
    "JobStatus",
    "Keys",
    "Message",
    "ModelCard",
    "Priority",
    "QueueStats",
    "StartedData",
    "TokenData",
    "Turn",
    "UnsupportedVersion",
    "VersionedMessage",
    "WorkerInfo",
    "parse_event_id",
    "picture_name",
]
