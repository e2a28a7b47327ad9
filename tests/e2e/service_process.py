"""The service as its user starts it: a process of its own, found by the URL it prints, stopped by SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
READY = re.compile(r"ready at (http://\S+)")
STOP_TIMEOUT_S = 60.0


class ServiceProcess:
    """`twigserve serve` on a free port, as a context manager. `output` is all it has written so far."""

    def __init__(self, *options: str, ready_timeout_s: float = 90.0) -> None:
        self.command: Sequence[str] = [sys.executable, "-m", "service.cli", "serve", "--port", "0", *options]
        self.url = ""
        self.output = ""
        self._ready_timeout_s = ready_timeout_s
        self._ready = threading.Event()

    def __enter__(self) -> ServiceProcess:
        self._process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._ready.wait(self._ready_timeout_s) or not self.url:
            self.stop()
            raise AssertionError(f"the service did not start:\n{self.output}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """The exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join(5)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if found := READY.search(line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()
