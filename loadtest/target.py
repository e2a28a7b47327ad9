"""The service under load where no URL is given: `twigserve serve` on a free port, stopped at the end."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

READY = re.compile(r"ready at (http://\S+)")
STOP_S = 60.0


@contextlib.contextmanager
def own_service() -> Iterator[str]:
    """Its URL. Its log stays on stderr."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout or ():
            if found := READY.search(line):
                yield found[1]
                return
        raise SystemExit("loadtest: the service did not start")
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
