"""The HTTP server that stops without losing anything: what runs may end, the rest is told where it goes on.

Invariant: after SIGTERM no connection is taken, open requests have the gateway's `shutdown_s` to end, and
every one that has not ended by then still gets its one terminal answer, within `RELEASE_S` more.
Must not know: what a request is waiting for.
"""

from __future__ import annotations

import asyncio
import math
import socket

import uvicorn

from service.gateway import Gateway

RELEASE_S = 3.0


class DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain_s = gateway.settings.shutdown_s
        config.timeout_graceful_shutdown = math.ceil(self._drain_s + RELEASE_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.drain()
        releasing = asyncio.get_running_loop().call_later(self._drain_s, self._gateway.release)
        try:
            await super().shutdown(sockets)
        finally:
            releasing.cancel()
