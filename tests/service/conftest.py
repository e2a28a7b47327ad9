"""The fixtures that the gateway's tests share."""

from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.both_clients import both  # noqa: F401
from tests.service.describing import folder  # noqa: F401
from tests.service.gateway_fixture import client, headless, live, settings, worker  # noqa: F401
from tests.service.keys_fixture import file  # noqa: F401
from tests.service.queue_fixture import queue  # noqa: F401
