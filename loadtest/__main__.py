"""python -m loadtest: one scenario against a service, a report, one JSON object as the last line.

`make loadtest` takes two minutes against a service that it starts itself. Options as
`make loadtest ARGS="--url http://127.0.0.1:8000 --scenario ramp"`.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from loadtest.report import page  # noqa: E402
from loadtest.run import Plan, run  # noqa: E402
from loadtest.sample import Objective, steps, summary  # noqa: E402
from loadtest.scenarios import SCENARIOS  # noqa: E402
from loadtest.target import own_service  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtest", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--url", help="a running service; one is started without it")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="steady")
    parser.add_argument("--seconds", type=float, default=120.0, help="warm-up included")
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds, not part of the figures")
    parser.add_argument("--rate", type=float, help="requests/s; else a share of what the warm-up measures")
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0)
    parser.add_argument("--slo-itl-ms", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=Path("build/loadtest"))
    said = parser.parse_args()
    if not 0 < said.warmup < said.seconds:
        parser.error("--warmup must be above 0 and below --seconds")
    if said.rate is not None and said.rate <= 0:
        parser.error("--rate must be above 0")
    return said


def main() -> None:
    said = arguments()
    scenario = SCENARIOS[said.scenario]
    objective = Objective(said.slo_ttft_ms / 1000, said.slo_itl_ms / 1000)
    with own_service() if said.url is None else contextlib.nullcontext(said.url) as url:
        print(f"{scenario.name}: {scenario.text} {said.seconds:g} s against {url}", flush=True)
        outcome = run(Plan(url, scenario, said.seconds, said.warmup, said.rate))
    result: dict[str, Any] = {"scenario": scenario.name, "rate_per_s": round(outcome.rate_per_s, 3)}
    result |= summary(outcome.samples, outcome.seconds, objective)
    result["steps"] = steps(outcome.samples, outcome.seconds, objective)
    folder = said.out / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    title = f"{scenario.name}, {outcome.rate_per_s:.2f} requests/s for {outcome.seconds:g} s"
    (folder / "report.html").write_text(page(title, scenario.text, result, outcome.samples))
    (folder / "locust.html").write_text(outcome.locust_html)
    result["report"] = str(folder / "report.html")
    print_table(result)
    print(f"report: {result['report']}")
    print(json.dumps(result))


def print_table(result: dict[str, Any]) -> None:
    print(f"{'':14}{'p50':>9}{'p95':>9}{'p99':>9}")
    for name, text in (("ttft_ms", "first token"), ("itl_ms", "between tokens"), ("e2e_ms", "whole answer")):
        print(f"{text:14}" + "".join(f"{value:8.0f} " for value in result[name].values()) + "ms")
    for name in ("requests", "offered_per_s", "answered_per_s", "goodput_per_s", "tokens_per_s"):
        print(f"{name:14}{result[name]:>9}")
    for name in ("good_share", "acceptance", "pruned_ratio"):
        print(f"{name:14}{result[name]:>9.1%}")
    print(f"{'errors':14}{result['errors']:>9}  {result['errors_by_code'] or ''}")


if __name__ == "__main__":
    main()
