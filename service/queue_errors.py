"""The broker's errors as the client is told of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from service.broker.base import BrokerError, Diverged, JobNotFound, Unreadable
from service.errors import QueueDown, Unavailable

RETRY_AFTER_S = 5


@contextlib.contextmanager
def queue_errors() -> Iterator[None]:
    try:
        yield
    except (JobNotFound, StopAsyncIteration) as lost:
        raise Unavailable("The queue lost this job.", code="job_lost", retry_after_s=RETRY_AFTER_S) from lost
    except (Diverged, Unreadable) as broken:
        code = "events_lost" if isinstance(broken, Diverged) else "newer_version"
        message = (
            "The queue lost a part of this answer." if code == "events_lost" else "A newer version is needed."
        )
        raise Unavailable(message, code=code, retry_after_s=RETRY_AFTER_S) from broken
    except BrokerError as down:
        raise QueueDown("The queue is not reachable.", retry_after_s=RETRY_AFTER_S) from down
