"""The broker's errors as the client is told of them."""

from __future__ import annotations

from service.broker.base import BrokerError, Diverged, JobNotFound, Unreadable
from service.errors import ApiError, QueueDown, Unavailable

RETRY_AFTER_S = 5


class QueueErrors:
    """A class and not a generator: it stands around every event."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, BrokerError | StopAsyncIteration):
            raise told(error) from error


_QUEUE_ERRORS = QueueErrors()


def queue_errors() -> QueueErrors:
    return _QUEUE_ERRORS


def told(error: BrokerError | StopAsyncIteration) -> ApiError:
    if isinstance(error, JobNotFound | StopAsyncIteration):
        return Unavailable("The queue lost this job.", code="job_lost", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, Diverged):
        return events_lost()
    if isinstance(error, Unreadable):
        return Unavailable("A newer version is needed.", code="newer_version", retry_after_s=RETRY_AFTER_S)
    return QueueDown("The queue is not reachable.", retry_after_s=RETRY_AFTER_S)


def events_lost() -> ApiError:
    return Unavailable(
        "The queue lost a part of this answer.", code="events_lost", retry_after_s=RETRY_AFTER_S
    )
