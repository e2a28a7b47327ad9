"""Compiles `kernels.cpp` and its headers once for a level of instructions, and finds what is compiled.

Invariant: a library is named by what it was made of (source, flags, level, OpenMP runtime), so a stale one is
never loaded, and it is loaded only from a directory that nobody else may write to.
Knows compilers and files, not layers. `python -m model.native.build` compiles ahead of time, for an image:
for every level of this architecture, since the machine that runs an image is not the one that builds it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
PREBUILT = SOURCE.with_name("built")
COMPILE_TIMEOUT_S = 900
# Without alignment peeling the order of a sum does not depend on where its terms lie.
FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "--param=vect-max-peeling-for-alignment=0",
)  # fmt: skip
# The best first. A machine of one level runs the libraries of those behind it as well.
LEVELS = {
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
}


class BuildError(Exception):
    """No compiler, or it failed."""


def level() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def levels() -> list[str]:
    """What this machine can run, the best first."""
    own, known = level(), list(LEVELS)
    return known[known.index(own) :] if own in known else [own]


def library_name(of_level: str) -> str:
    said = " ".join([*FLAGS, *LEVELS.get(of_level, ()), torch_openmp().name])
    headers = sorted(SOURCE.parent.glob("*.hpp"))
    made_of = b"".join(path.read_bytes() for path in [SOURCE, *headers]) + said.encode()
    return f"kernels-{of_level.lower()}-{hashlib.sha256(made_of).hexdigest()[:16]}.so"


def cache_directory() -> Path:
    """Raises BuildError for a user without a home."""
    try:
        return Path.home() / ".cache" / "twigserve"
    except RuntimeError as error:
        raise BuildError(str(error)) from error


def find(of_level: str | None = None) -> Path | None:
    """Raises BuildError where there is no telling."""
    name = library_name(of_level or level())
    for directory in (lambda: PREBUILT, cache_directory):
        path = directory() / name
        if path.is_file() and _only_ours(path.parent):
            return path
    return None


def _only_ours(directory: Path) -> bool:
    """What others may write to can hold anything; root's own directories are as good as ours."""
    status = directory.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def torch_openmp() -> Path:
    """The OpenMP runtime of this process: with a second one the two pools would spin against each other."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    for line in lines:
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(("libgomp", "libiomp5", "libomp")):
            return path
    raise BuildError("torch's OpenMP runtime was not found")


def compile_to(directory: Path, of_level: str | None = None) -> Path:
    """Raises BuildError."""
    of_level = of_level or level()
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError("there is no g++")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _only_ours(directory):
        raise BuildError(f"others may write to {directory}")
    target = directory / library_name(of_level)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        part, whole = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        _run([compiler, *FLAGS, *LEVELS.get(of_level, ()), "-c", str(SOURCE), "-o", str(part)])
        # -fopenmp at this step would bring in the system's runtime.
        _run([compiler, "-shared", str(part), str(torch_openmp()), "-o", str(whole)])
        whole.replace(target)
    return target


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def find_or_compile() -> Path | None:
    """None where it cannot be had; the reason is logged, and torch's operations do the work.

    Of a lower level where the machine's own can be neither found nor compiled.
    """
    own, *lower = levels()
    try:
        return find(own) or compile_to(cache_directory())
    except (BuildError, OSError) as error:
        reason = error
    with suppress(BuildError, OSError):
        for of_level in lower:
            if (path := find(of_level)) is not None:
                log.info("native kernels for %s instead of %s: %s", of_level, own, reason)
                return path
    log.warning("no native kernels, decoding will be slower: %s", reason)
    return None


def obtainable() -> str | None:
    """How the kernels are had on this machine, in words, without compiling; None: not at all."""
    try:
        if any(find(of_level) is not None for of_level in levels()):
            return "compiled"
    except (BuildError, OSError):
        return None
    return None if shutil.which("g++") is None else "compiled at the first start"


def main() -> None:
    """Compiles into the package itself."""
    own = level()
    try:
        for of_level in LEVELS if own in LEVELS else [own]:
            print(compile_to(PREBUILT, of_level))
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
