"""The end of asyncio's tasks that somebody else runs.

Must not know: what they do.
"""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.05


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels them until they are done: redis-py swallows a cancellation that meets an arriving reply."""
    while running := [task for task in tasks if task is not None and not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN_S)
