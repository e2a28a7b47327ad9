"""What the processes of a real run write to their logs: no prompt, no picture, no key, no answer."""

from __future__ import annotations

import base64
import io
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.keys import KeyEntry, KeyFile, digest, new_key, write_keys
from service.settings import RedisSettings
from tests.deploy.topology import await_true, free_port
from tests.e2e.workers import environment
from tests.redis_fixture import redis_server, redis_settings  # noqa: F401
from tests.service.pictures import encoded, noise
from tests.service.stub_engine import expected_tokens, text_of

PROMPT = "Where did Rosalind hide the amethyst?"
PICTURE = encoded(noise(32, 32), "PNG")
URL = "/v1/describe"

pytestmark = pytest.mark.e2e


def test_nothing_a_client_sent_or_got_is_logged(redis_settings: RedisSettings, tmp_path: Path) -> None:  # noqa: F811
    key, wrong, port = new_key(), new_key(), free_port()
    keys = tmp_path / "keys.json"
    write_keys(keys, KeyFile(keys=(KeyEntry(name="team", sha256=digest(key), requests_per_minute=50),)))
    extra = {"TWIGSERVE_LOG_LEVEL": "debug", "TWIGSERVE_GATEWAY_KEYS_FILE": str(keys)}
    env = environment(redis_settings) | extra
    commands = {
        "gateway": ("-m", "service.cli", "gateway", "--port", str(port)),
        "worker": ("-m", "tests.service.stub_worker", "--step-s=0.01", "--metrics-port", "0"),
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        running = [
            subprocess.Popen((sys.executable, *command), env=env, stdout=out, stderr=out)
            for command in commands.values()
        ]
        try:
            traffic(f"http://127.0.0.1:{port}", key, wrong)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait(60)
    written = log.read_text()
    assert '"message": "job done"' in written, "there is nothing to scan"
    for secret in secrets(key, wrong):
        assert secret not in written


def secrets(key: str, wrong: str) -> list[str]:
    words = PROMPT.split()
    answer = text_of(expected_tokens(PROMPT, 8)).split()
    picture = base64.b64encode(PICTURE).decode()
    return [key, wrong, digest(key), *words[2:3], "amethyst", answer[0], picture[40:60], "IHDR"]


def traffic(url: str, key: str, wrong: str) -> None:
    """Good, bad and refused requests of every kind that has a line in a log."""

    def ready() -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    bearer = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        await_true(ready, "the gateway")
        form = {"files": {"image": ("secret-amethyst.png", io.BytesIO(PICTURE))}}
        fields = {"prompt": PROMPT, "max_tokens": "8"}
        assert client.post(URL, **form, data=fields, headers=bearer).status_code == 200
        asked = {"image": base64.b64encode(PICTURE).decode(), "prompt": PROMPT, "max_tokens": 8}
        assert client.post(URL, json=asked | {"stream": True}, headers=bearer).status_code == 200
        refused = asked | {"prompt": "refuse " + PROMPT}
        assert client.post(URL, json=refused, headers=bearer).status_code == 400
        broken = asked | {"image": base64.b64encode(PICTURE[:60]).decode()}
        assert client.post(URL, json=broken, headers=bearer).status_code == 422
        assert client.post(URL, json=asked | {PROMPT: 1}, headers=bearer).status_code == 400
        for bad in ({}, {"Authorization": f"Bearer {wrong}"}, {"Authorization": f"Basic {key}"}):
            assert client.post(URL, json=asked, headers=bad).status_code == 401
