"""python -m loadtest.cluster: a rehearsal of a cluster's bad days, under load. One JSON object last.

Load balancer, two gateways, three workers and Redis, each a host with an address of its own (network
namespaces, so root is needed). Gateways and workers are rolled; cables of a worker, a gateway and Redis are
pulled and put back. Exit 1 if a request was lost, told something twice, or hung.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.cluster.fleet import GATEWAYS, HOSTS, LEASE_S, WORKER_COMMANDS, WORKERS, Fleet
from loadtest.cluster.network import Network, NotPossibleError
from loadtest.cluster.traffic import Traffic

SETTLE_S = 3.0
RATES = {"scripted": (6.0, 48), "embedded": (0.5, 24)}  # requests/s, tokens

Phase = tuple[str, Callable[[], None]]


def phases(network: Network, fleet: Fleet) -> list[Phase]:
    def cut(host: str, seconds: float) -> Callable[[], None]:
        def pull() -> None:
            with network.cut(host):
                time.sleep(seconds)
            fleet.await_workers(len(WORKERS))

        return pull

    return [
        *((f"roll {name}", lambda name=name: fleet.roll_gateway(name)) for name in GATEWAYS),
        *((f"roll {name}", lambda name=name: fleet.roll_worker(name)) for name in WORKERS),
        # Longer than a lease, so that its jobs go to others; what it still writes afterwards is fenced.
        ("cut worker-1", cut("worker-1", 2 * LEASE_S)),
        ("cut gateway-2", cut("gateway-2", 4.0)),
        ("cut redis", cut("redis", 4.0)),
    ]


async def drill(network: Network, fleet: Fleet, engine: str) -> dict[str, Any]:
    per_s, max_tokens = RATES[engine]
    traffic = Traffic(fleet.url, per_s, max_tokens)
    began = time.monotonic()
    running = asyncio.create_task(traffic.run())
    took: dict[str, float] = {}
    try:
        for name, act in phases(network, fleet):
            await asyncio.sleep(SETTLE_S)
            started = time.monotonic()
            await asyncio.to_thread(act)
            took[name] = round(time.monotonic() - started, 1)
            print(f"{name}: {took[name]:g} s, {traffic.tally.requests} requests so far", flush=True)
        await asyncio.sleep(SETTLE_S)
    finally:
        traffic.stop()
    tally = dataclasses.asdict(await running)
    tally["longest_s"] = round(tally["longest_s"], 1)
    problems = tally.pop("problems")
    for problem in problems[:20]:
        print(problem)
    return {
        "drill": f"cluster-{engine}",
        **tally,
        "seconds": round(time.monotonic() - began, 1),
        "phases_s": took,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtest.cluster", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--engine", choices=sorted(WORKER_COMMANDS), default="scripted")
    parser.add_argument("--logs", type=Path, help="where the processes' logs are kept; else nowhere")
    said = parser.parse_args()
    # A terminated rehearsal takes its hosts and processes down too: SIGTERM would end it on the spot.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="twigserve-cluster-") as temporary:
            folder = said.logs or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            with Network(HOSTS) as network, Fleet(network, folder, said.engine) as fleet:
                result = asyncio.run(drill(network, fleet, said.engine))
    except NotPossibleError as error:
        print(f"cluster-drill: {error}", file=sys.stderr)
        return 2
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        print(f"cluster-drill: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 1 if result["lost"] or result["duplicated"] or result["hung"] else 0


if __name__ == "__main__":
    sys.exit(main())
