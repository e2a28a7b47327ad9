"""Python's garbage collector as a server wants it.

What was imported is never garbage, and looking through all of it again stops the loop for tens of
milliseconds. Requests leave few cycles behind, so the young are looked through less often.
"""

from __future__ import annotations

import gc

YOUNG = 10_000  # objects; Python's own is 700
OLDER, OLDEST = 20, 20


def settle() -> None:
    """Once everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDEST)
