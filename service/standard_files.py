"""The three files that every process has, where whoever started this one closed some of them."""

from __future__ import annotations

import os


def hold() -> None:
    """Else the next socket is one of them, and uvloop ends the process when that is closed."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(file, True)  # for the processes that this one starts
    os.close(file)
