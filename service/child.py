"""One supervised process: started, watched, started again after a crash, stopped.

Invariant: a child never outlives the launcher (on Linux even if that is killed), and crashes in a row are
answered ever more slowly. Knows nothing of what the child does.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

log = logging.getLogger("twigserve.launcher")

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 30.0
HEALTHY_AFTER_S = 60.0
_PR_SET_PDEATHSIG = 1


class Child:
    def __init__(
        self, name: str, command: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._command = list(command)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._backoff_s = BACKOFF_FIRST_S
        self._restart_at: float | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        self._process = spawn(self._command)
        self._started_at = self._clock()
        self._restart_at = None

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def revive(self) -> None:
        """Call often: starts a crashed child again once its backoff is over."""
        code = self.exit_code()
        if code is None:
            return
        now = self._clock()
        if self._restart_at is None:
            if now - self._started_at > HEALTHY_AFTER_S:
                self._backoff_s = BACKOFF_FIRST_S
            self._restart_at = now + self._backoff_s
            log.error("child died", extra={"child": self.name, "code": code, "restart_s": self._backoff_s})
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
        elif now >= self._restart_at:
            self._start_again(now)

    def _start_again(self, now: float) -> None:
        try:
            self.start()
        except OSError as error:  # no memory, or no more processes: that may pass
            self._restart_at = now + self._backoff_s
            log.error("child not started", extra={"child": self.name, "error": str(error)})
        else:
            log.info("child started again", extra={"child": self.name, "child_pid": self.pid})

    def interrupt(self) -> None:
        """To one that is stopping already: do not wait for what runs. Safe in a signal handler."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Waits for the end after `terminate`; kills what does not end in time."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("child killed", extra={"child": self.name, "after_s": timeout_s})
            self._process.kill()
            self._process.wait()


def spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches the launcher alone, which stops its children in order."""
    # preexec_fn is safe here: it only calls a C function that was looked up before the fork.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent())  # noqa: S603, PLW1509


def _die_with_parent() -> Callable[[], object] | None:
    """The kernel sends SIGTERM when the thread that spawned ends; None where it cannot."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
