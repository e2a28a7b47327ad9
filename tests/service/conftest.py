"""The fixtures that the gateway's tests share."""

from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.both_clients import both  # noqa: F401
from tests.service.gateway_fixture import client, headless, live, settings, worker  # noqa: F401
