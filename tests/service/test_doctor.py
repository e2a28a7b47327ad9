"""`twigserve doctor`: on this machine as it is, and each thing that can be missing."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.checkpoint import EMBEDDED_TWIG
from model.machine import checkpoint_bytes
from service import doctor
from service.cli import app
from service.embedded_redis import EmbeddedRedis, NoRedisError
from service.settings import GatewaySettings
from tests.redis_fixture import redis_server  # noqa: F401

run = CliRunner().invoke


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWIGSERVE_GATEWAY_PORT", "0")


@pytest.mark.usefixtures("free_port")
def test_where_the_tests_run_nothing_is_missing() -> None:
    result = run(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    missing = [check for check in report["checks"] if check["verdict"] == "missing"]
    assert (result.exit_code, report["ok"]) == (int(bool(missing)), not missing)
    names = {check["name"] for check in report["checks"]}
    everywhere = {"python", "packages", "cpu", "gpu", "weights", "memory", "redis", "port"}
    assert names - {"kernels"} == everywhere
    assert [check for check in missing if check["name"] != "memory"] == []


@pytest.mark.usefixtures("free_port")
def test_a_missing_checkpoint_is_told_in_plain_words(tmp_path: Path) -> None:
    result = run(app, ["doctor", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "MISSING weights" in " ".join(result.stdout.split())
    assert "Something is missing." in result.stdout
    assert "Traceback" not in result.output


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = doctor.port(GatewaySettings(port=taken.getsockname()[1]))
    assert finding.verdict == "missing"
    assert "0: a free one" in finding.advice


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"whole"])
def test_weights_that_are_not_whole(tmp_path: Path, content: bytes) -> None:
    whole = (EMBEDDED_TWIG / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(whole[:-1] if content == b"whole" else content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoint_bytes(str(tmp_path), None)


def test_no_redis_to_start_and_one_to_use(
    redis_server: EmbeddedRedis,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> str:
        raise NoRedisError("no Redis: install one")

    assert doctor.redis_server(none, None) == doctor.Finding("redis", "missing", "no Redis: install one")
    monkeypatch.setenv("TWIGSERVE_REDIS_URL", redis_server.url)
    assert doctor.redis_server(none, redis_server.url).verdict == "ok"
    monkeypatch.setenv("TWIGSERVE_REDIS_URL", "redis://127.0.0.1:9")
    assert doctor.redis_server(none, "redis://127.0.0.1:9").verdict == "missing"


def test_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2000000 kB\n")
    assert doctor.available_bytes(tmp_path, tmp_path) == 2_048_000_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    assert doctor.available_bytes(tmp_path, tmp_path) == 2_048_000_000
    (tmp_path / "memory.max").write_text("1000\n")
    assert doctor.available_bytes(tmp_path, tmp_path) == 400
    # Files that were read, weights among them, looked like memory that is gone.
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 300\n")
    assert doctor.available_bytes(tmp_path, tmp_path) == 700
    assert doctor.available_bytes(tmp_path / "no", tmp_path / "no") is None
    assert doctor.memory(10, 400).verdict == "missing"
    assert doctor.memory(10, 2**33).verdict == "ok"
    assert doctor.memory(10, None).verdict == "note"


def test_kernels_that_cannot_be_had_are_a_note_with_a_remedy() -> None:
    finding = doctor.kernels(None)
    assert finding.verdict == "note"
    assert "g++" in finding.advice
    assert doctor.kernels("compiled").verdict == "ok"


def test_a_gpu_that_torch_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    finding = doctor.gpu((), None, "float32")
    assert (finding.verdict, "CPU build" in finding.detail) == ("note", True)
    assert doctor.gpu(("A GPU",), "12.8", "float32").verdict == "ok"
    assert doctor.gpu((), None, "float32", "cuda").verdict == "missing"


@pytest.mark.parametrize("content", [None, "", '{"keys": [{"name": "a", "sha256": "secret"}]}'])
def test_keys_that_no_gateway_could_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    finding = doctor.keys(path)
    assert finding.verdict == "missing"
    assert "secret" not in finding.detail
