"""Work that is done later unless it is called off: a timer, which costs a tenth of a task that sleeps.

Must not know: what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Alarm:
    """Begins `work` in `after_s`. `cancel` calls it off, or ends it where it has begun."""

    def __init__(self, after_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Future[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(max(after_s, 0), self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._work())

    def cancel(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
