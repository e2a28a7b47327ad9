"""Worker processes for the end-to-end tests: started, awaited until their heartbeat, killed, cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

from service.broker.base import GatewayBroker
from service.settings import RedisSettings

STUB = (sys.executable, "-m", "tests.service.stub_worker", "--step-s=0.03")
REAL = (sys.executable, "-m", "service.cli", "worker", "--dtype", "float32", "--threads", "1")


def environment(redis: RedisSettings) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TWIGSERVE_")} | {
        "TWIGSERVE_REDIS_URL": redis.url.get_secret_value(),
        "TWIGSERVE_REDIS_SHARD": redis.shard,
        "TWIGSERVE_REDIS_LEASE_S": str(redis.lease_s),
        "TWIGSERVE_WORKER_POLL_S": "0.2",
        "TWIGSERVE_WORKER_HEARTBEAT_S": "0.2",
        "OMP_WAIT_POLICY": "passive",
    }


@contextlib.asynccontextmanager
async def worker_processes(
    command: Sequence[str], count: int, redis: RedisSettings, broker: GatewayBroker, ready_s: float
) -> AsyncIterator[dict[str, subprocess.Popen[bytes]]]:
    """Worker id -> process, all of them ready."""
    env = environment(redis)
    processes = {
        f"w{number}": subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [*command, "--metrics-port", "0"], env=env | {"TWIGSERVE_WORKER_WORKER_ID": f"w{number}"}
        )
        for number in range(count)
    }
    try:
        async with asyncio.timeout(ready_s):
            while {info.worker_id for info in await broker.workers()} != set(processes):
                assert all(process.poll() is None for process in processes.values()), "a worker died"
                await asyncio.sleep(0.05)
        yield processes
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes.values():
            process.wait(15)
