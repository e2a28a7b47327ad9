"""The broker over Redis: one class a side, see `redis_gateway` (asyncio) and `redis_worker` (threads)."""

from service.broker.redis_gateway import RedisGatewayBroker
from service.broker.redis_worker import RedisWorkerBroker

__all__ = ["RedisGatewayBroker", "RedisWorkerBroker"]
