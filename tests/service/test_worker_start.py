"""A signal before a worker is ready: it leaves at once and cleanly, whatever its loader is doing."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from service.settings import WorkerSettings
from service.worker import run_worker

def asleep(_settings):
    print("loading", flush=True)
    time.sleep(600)

def in_threads(_settings):
    # As weights are loaded: leaving the block by an exception would wait for what was submitted.
    with ThreadPoolExecutor() as pool:
        task = pool.submit(time.sleep, 600)
        print("loading", flush=True)
        task.result()

run_worker(WorkerSettings(metrics_port=None), load={load})
"""


@pytest.mark.usefixtures("heeds_hangup")
@pytest.mark.parametrize("load", ["asleep", "in_threads"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_loading_ends_the_worker(load: str, number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{load}", load)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
