"""The gateway as an ASGI application: `create_app` puts broker, metrics, middleware and routes together.

Invariant: the broker's one event reader and the image decoders live exactly as long as the application.
Must not know: what any route does. The gateway process never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from service.authentication import Authentication
from service.batch_runner import BatchRunner
from service.batches import Batches, BatchLimits
from service.broker.base import GatewayBroker
from service.broker.batches import RedisBatchStore
from service.broker.redis import RedisGatewayBroker
from service.errors import install_handlers
from service.gateway import Gateway
from service.keys import KeyRing
from service.metrics import GatewayMetrics
from service.middleware import BodyLimit, RequestId
from service.openapi import Api
from service.routes import batches, chat, describe, docs, health, jobs, models, playground
from service.settings import GatewaySettings
from service.shortcut import Shortcut

DESCRIPTION = """Descriptions of pictures by a vision-language model, with twig-guided pruning of visual
tokens, self-speculative decoding and continuous batching."""
# Besides the picture: the prompt, the other fields, multipart framing.
BODY_OVERHEAD_BYTES = 1024 * 1024


def create_app(settings: GatewaySettings, broker: GatewayBroker | None = None) -> FastAPI:
    app = Api(
        title="twigserve",
        version=version("twigserve"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # `routes.docs`
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `request_tracing`'s, and our own
    )
    gateway = Gateway(settings, broker or RedisGatewayBroker(settings.redis), GatewayMetrics())
    app.state.gateway = gateway
    store = RedisBatchStore(settings.redis)
    limits = BatchLimits(
        settings.batch_max_lines,
        settings.batch_max_bytes,
        settings.batch_ttl_s,
        settings.batch_max_open,
        settings.batch_store_bytes,
    )
    app.state.batches = Batches(store, limits)
    app.state.batch_runner = BatchRunner(
        gateway, store, settings.batch_ttl_s, settings.batch_look_s, settings.batch_running
    )
    # The last one added is the outermost.
    app.add_middleware(Shortcut, posts={"/v1/describe": describe.describe, "/v1/chat/completions": chat.chat})
    app.add_middleware(Authentication, ring=KeyRing(settings.keys_file) if settings.keys_file else None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes(settings))
    if settings.cors_origins:
        # Without credentials: no cookie means anything here, and a key is sent by the page's own script.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(RequestId)
    install_handlers(app)
    app.include_router(describe.router)
    app.include_router(jobs.router)
    app.include_router(chat.router)
    app.include_router(batches.router)
    app.include_router(health.router)
    app.include_router(models.router)
    app.include_router(docs.router)
    app.include_router(playground.router)  # last: it takes what is left of /static
    return app


def max_body_bytes(settings: GatewaySettings) -> int:
    """Room for one picture of the largest size as base64, or for one batch."""
    return max(settings.max_image_bytes * 4 // 3, settings.batch_max_bytes) + BODY_OVERHEAD_BYTES


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    runner: BatchRunner = app.state.batch_runner
    await gateway.broker.start()
    gateway.background.start()
    runner.start()
    try:
        yield
    finally:
        await runner.stop()
        await gateway.background.stop()
        await gateway.images.close()
        await asyncio.to_thread(gateway.tracing.close)  # sends what is unsent
        await gateway.broker.close()
