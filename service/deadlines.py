"""`X-Request-Timeout-Ms`: how long the client will wait, within what the service allows.

Invariant: a deadline counts from the request's arrival; a job carries it, whoever waits for it.
Must not know: what happens at a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from service.errors import BadField

HEADER = "X-Request-Timeout-Ms"


def timeout_s(headers: Mapping[str, str], longest_s: float) -> float:
    """The client's own, else the longest."""
    given = headers.get(HEADER)
    if given is None:
        return longest_s
    longest_ms = int(longest_s * 1000)
    if not _is_number(given) or not 1 <= int(given) <= longest_ms:
        raise BadField(HEADER, f"'{HEADER}' must be a whole number of milliseconds, 1 to {longest_ms}.")
    return int(given) / 1000


def _is_number(text: str) -> bool:
    """Of no more digits than any limit has: Python refuses to read thousands of them."""
    return text.isascii() and text.isdecimal() and len(text) <= 12


def deadline_at(arrived_at: float, timeout: float) -> float:
    """Unix seconds. arrived_at: on the monotonic clock."""
    return time.time() - (time.monotonic() - arrived_at) + timeout
