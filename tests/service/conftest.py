"""The fixtures that the gateway's tests share."""

import signal
from collections.abc import Iterator

import pytest

from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.both_clients import both  # noqa: F401
from tests.service.describing import folder  # noqa: F401
from tests.service.gateway_fixture import client, headless, live, settings, worker  # noqa: F401
from tests.service.keys_fixture import file  # noqa: F401
from tests.service.queue_fixture import queue  # noqa: F401


@pytest.fixture
def heeds_hangup() -> Iterator[None]:
    """What is started heeds a closed terminal, also where the tests run under nohup: who is told to ignore
    SIGHUP passes that on, and the service respects it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
