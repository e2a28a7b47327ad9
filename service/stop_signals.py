"""What asks a process to stop: SIGTERM, Ctrl-C, and a terminal that is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def on_stop(handler: Callable[[int, Any], object]) -> None:
    """`nohup` means what it says: a hang-up that is ignored stays so."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, handler)
