"""`python -m loadtest.drills [name...]`: every drill or those named, one JSON line each.

Exit 1 if one has failed; what was wrong, and the ends of the logs, are on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from loadtest.drills import gateway_faults, redis_faults, version_faults, worker_faults
from loadtest.drills.drill import DRILLS, run

MAX_LOG_CHARS = 6000
MODULES = (worker_faults, gateway_faults, redis_faults, version_faults)


def main() -> int:
    parser = argparse.ArgumentParser(prog="drills", description="Break a service of one's own and count.")
    parser.add_argument("names", nargs="*", choices=[[], *DRILLS], help="all, if none is named")
    parser.add_argument("--list", action="store_true", help="say what each drill does")
    said = parser.parse_args()
    if said.list:
        for drill in DRILLS.values():
            print(f"{drill.name:28}{(drill.play.__doc__ or '').splitlines()[0]}")
        return 0
    return max([play(name) for name in said.names or DRILLS])


def play(name: str) -> int:
    verdict = asyncio.run(run(DRILLS[name]))
    print(json.dumps(verdict.line), flush=True)
    if not verdict.passed:
        print(
            f"{name} failed: {verdict.faults}\n{verdict.logs[-MAX_LOG_CHARS:]}", file=sys.stderr, flush=True
        )
    return int(not verdict.passed)


if __name__ == "__main__":
    sys.exit(main())
