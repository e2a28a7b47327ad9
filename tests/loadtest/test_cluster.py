"""What the rehearsal in network namespaces counts; the rehearsal itself is `make cluster-drill`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.cluster.fleet import GATEWAYS, HOSTS, Fleet
from loadtest.cluster.network import Network, NotPossibleError
from loadtest.cluster.traffic import Request, Tally, Traffic
from tests.deploy.topology import await_true


def test_without_root_it_says_so_and_makes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/sbin/ip")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPossibleError, match="sudo"), Network(HOSTS):
        pass


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
def test_a_terminated_rehearsal_leaves_no_host_behind() -> None:
    """Caught once: SIGTERM ended it on the spot, and eight namespaces with their processes stayed. And once:
    a cable on its way from the machine's network to a host's stayed, and no rehearsal could start again."""
    rehearsal = subprocess.Popen(
        [sys.executable, "-m", "loadtest.cluster"], stderr=subprocess.PIPE, text=True
    )
    mine = f"tw{rehearsal.pid}-"

    def hosts() -> list[str]:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        return [line for line in listed.stdout.splitlines() if line.startswith(mine)]

    try:
        await_true(lambda: bool(hosts()) or rehearsal.poll() is not None, "hosts")
        rehearsal.terminate()
        _, said = rehearsal.communicate(timeout=90)
        if rehearsal.returncode == 2 and "exists" not in said:
            pytest.skip(f"not possible on this machine: {said}")
        assert rehearsal.returncode == 128 + signal.SIGTERM, said
    finally:
        rehearsal.kill()
        rehearsal.wait()
    assert hosts() == []
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert "to-" not in links


def tally(token_ids: list[int], text: str, done: dict[str, Any] | None, problem: str = "") -> Tally:
    traffic = Traffic("http://unused", 1.0, 8)
    traffic._count(Request(1, 0.0, token_ids=token_ids, text=text, done=done, problem=problem))
    return traffic.tally


DONE = {"usage": {"completion_tokens": 3}, "text": "a b c"}


def test_a_whole_answer_is_neither_lost_nor_duplicated() -> None:
    whole = tally([1, 2, 3], "a b c", DONE)
    assert (whole.lost, whole.duplicated, whole.problems) == (0, 0, [])


@pytest.mark.parametrize(
    ("token_ids", "text", "done", "problem", "lost", "duplicated"),
    [
        ([1, 2], "a b", DONE, "", 1, 0),
        ([1, 2, 2, 3], "a b b c", DONE, "", 1, 1),
        ([1, 3, 2], "a c b", DONE, "", 1, 0),
        ([1], "a", None, "engine_error", 1, 0),
        ([1], "a", None, "hung", 0, 0),  # counted where its time ran out
    ],
)
def test_anything_less_is_a_problem(
    token_ids: list[int], text: str, done: Any, problem: str, lost: int, duplicated: int
) -> None:
    result = tally(token_ids, text, done, problem)
    assert (result.lost, result.duplicated) == (lost, duplicated)
    assert len(result.problems) == 1


def test_the_balancer_is_that_of_compose_with_addresses(tmp_path: Path) -> None:
    if shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("no nginx on this machine")
    fleet = Fleet(Network(HOSTS), tmp_path, "scripted")
    fleet._balance(GATEWAYS[1:])
    text = (tmp_path / "nginx.conf").read_text()
    first, second = (fleet._network.addresses[name] for name in GATEWAYS)
    assert f"server {first}:8000 down max_fails=0;" in text
    assert f"server {second}:8000 max_fails=0;" in text
    assert "gateway-" not in text
