"""`twigserve doctor`: what this machine lacks to serve, each finding in plain words with what to do.

Invariant: looks only; starts nothing but a question to a Redis that the settings name. A finding that stops
`twigserve serve` is `missing`; one that only costs something is a `note`.
Must not know: torch and the checkpoint format (its caller hands in what `model.machine` found).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from service.embedded_redis import OLDEST_REDIS
from service.ports import port_problem
from service.settings import GatewaySettings, RedisSettings, told

Verdict = Literal["ok", "note", "missing"]
OLDEST_PYTHON = (3, 11)
WORKER_PACKAGES = ("torch", "transformers", "safetensors", "numpy")
# Beside the weights, and one more copy of them while they are loaded: Python, torch, the KV cache.
SPARE_BYTES = 700 * 2**20
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "missing", found, "Python 3.11 or newer is needed.")
    return Finding("python", "ok", found)


def packages() -> Finding:
    missing = [name for name in WORKER_PACKAGES if _version(name) is None]
    if missing:
        advice = "pip install 'twigserve[worker]'; a gateway alone does without."
        return Finding("packages", "missing", f"not installed: {', '.join(missing)}", advice)
    return Finding("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in WORKER_PACKAGES))


def gpu(names: tuple[str, ...], cuda_build: str | None, auto_dtype: str, device: str = "cpu") -> Finding:
    """device: the one that the settings name."""
    if names:
        advice = "Choose it with --device cuda. What runs on a GPU has not been measured by this project."
        return Finding("gpu", "ok", ", ".join(names), advice)
    why = "this torch is a CPU build" if cuda_build is None else f"torch for CUDA {cuda_build} sees none"
    if device.startswith("cuda"):
        advice = "Install a CUDA build of torch that fits the driver, or choose the device cpu."
        return Finding("gpu", "missing", f"the device is to be {device}, but {why}", advice)
    if shutil.which("nvidia-smi") is not None:
        advice = "Install a CUDA build of torch that fits the driver; until then workers run on the CPU."
        return Finding("gpu", "note", f"nvidia-smi is here, but {why}", advice)
    return Finding("gpu", "ok", f"none; workers compute on the CPU, in {auto_dtype}")


def kernels(how: str | None) -> Finding:
    """how: as `model.machine` tells it."""
    if how is None:
        advice = "Install g++: the engine then compiles them once, and decodes several times faster on a CPU."
        return Finding("kernels", "note", "no native kernels, and no g++ to compile them", advice)
    return Finding("kernels", "ok", f"native, {how}: bfloat16 weights, sums in float32")


def cpu() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        advice = "Gateway and worker will take turns: the first token waits longer."
        return Finding("cpu", "note", "1 core", advice)
    return Finding("cpu", "ok", f"{cores} cores")


def memory(weights_bytes: int, available_bytes: int | None) -> Finding:
    if available_bytes is None:
        return Finding("memory", "note", "this system does not tell how much is available")
    needed = 2 * weights_bytes + SPARE_BYTES
    both = f"{available_bytes / GIB:.1f} GiB available, about {needed / GIB:.1f} GiB needed for one worker"
    if available_bytes < needed:
        return Finding("memory", "missing", both, "Close something, or choose a smaller model.")
    return Finding("memory", "ok", both)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the kernel and, in a container, the limit leave; None where neither tells."""
    left = [found for found in (_from_meminfo(proc / "meminfo"), _from_cgroup(cgroup)) if found is not None]
    return min(left) if left else None


def redis_server(find: Callable[[], str], named: str | None) -> Finding:
    """find: the binary that the all-in-one service would start. named: the URL that the settings name."""
    if named is not None:
        return redis_at(RedisSettings())
    try:
        return Finding("redis", "ok", f"`twigserve serve` starts {find()}")
    except RuntimeError as error:
        return Finding("redis", "missing", str(error))


def redis_at(settings: RedisSettings) -> Finding:
    from service.broker.connection import server_version

    where = "the Redis of TWIGSERVE_REDIS_URL"
    try:
        found = server_version(settings)
    except Exception as error:  # any of redis-py's, and of the network below it
        return Finding("redis", "missing", f"{where} does not answer: {error}", "Start it, or mend the URL.")
    number = ".".join(map(str, found))
    if found < OLDEST_REDIS:
        return Finding(
            "redis", "missing", f"{where} is version {number}", "6.2 or newer is needed, or Valkey."
        )
    return Finding("redis", "ok", f"{where}, version {number}")


def port(settings: GatewaySettings) -> Finding:
    """Bound as the gateway would bind it."""
    problem = port_problem(settings.host, settings.port)
    if problem is not None:
        return Finding("port", "missing", f"{problem.where}: {problem.what}", problem.advice)
    return Finding("port", "ok", f"{settings.host}:{settings.port} is free")


def keys(path: Path) -> Finding:
    from service.keys import read_keys

    try:
        return Finding("keys", "ok", f"{path}, {len(read_keys(path).keys)} keys")
    except (OSError, ValueError) as error:
        why = told(error) if isinstance(error, ValueError) else error.strerror
        return Finding("keys", "missing", f"{path}: {why}", "`twigserve keys add` makes one.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _from_meminfo(path: Path) -> int | None:
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _from_cgroup(folder: Path) -> int | None:
    """cgroup 2; a limit of `max` is none. Files that were read count as used, but give way."""
    limit, used, stat = folder / "memory.max", folder / "memory.current", folder / "memory.stat"
    if not (limit.is_file() and used.is_file()) or not limit.read_text().strip().isdecimal():
        return None
    parts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    held = int(used.read_text()) - int(parts.get("inactive_file", 0))
    return max(0, int(limit.read_text()) - held)
