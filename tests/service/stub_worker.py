"""`twigserve worker` with the stub engine: `python -m tests.service.stub_worker <the worker's own options>`.

A first argument `--step-s=0.02` sets how long a round takes.
"""

from __future__ import annotations

import functools
import sys

import service.worker
from service.cli import app
from tests.service.stub_engine import StubEngine


def main(arguments: list[str]) -> None:
    step_s = 0.0
    if arguments and arguments[0].startswith("--step-s="):
        step_s = float(arguments.pop(0).partition("=")[2])
    load = lambda _settings: StubEngine(step_s)  # noqa: E731
    service.worker.run_worker = functools.partial(service.worker.run_worker, load=load)
    app(["worker", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
