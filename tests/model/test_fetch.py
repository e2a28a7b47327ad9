"""A checkpoint from a real web server: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.fetch import DONE, FetchError, fetch, parse_sums
from service.cli import app

FILES = {"config.json": b"{}", "shards/model.safetensors": bytes(range(256)) * 9000}
SUMS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "hub"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", folder
        http.shutdown()
        thread.join()


def held(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != DONE
    }


def test_what_is_listed_comes_and_comes_once(server: tuple[str, Path], tmp_path: Path) -> None:
    url, hub = server
    (hub / "other.bin").write_bytes(b"not listed")
    came: dict[str, int] = {}
    target = tmp_path / "models"
    told = lambda name, size: came.update({name: came.get(name, 0) + size})  # noqa: E731
    assert fetch(url, target, SUMS, told) == 2
    assert held(target) == FILES
    assert came == {"config.json": 2, "model.safetensors": len(FILES["shards/model.safetensors"])}
    assert fetch("http://127.0.0.1:9", target, SUMS) == 0


def test_a_wrong_file_is_refused_and_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    url, hub = server
    (hub / "config.json").write_bytes(b"[]")
    target = tmp_path / "models"
    with pytest.raises(FetchError, match="the list says"):
        fetch(url, target, SUMS)
    assert held(target) == {}


def test_a_broken_file_is_fetched_again_and_a_right_one_is_not(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    url, hub = server
    target = tmp_path / "models"
    fetch(url, target, SUMS)
    (target / "config.json").write_bytes(b"cut")
    (target / DONE).unlink()
    (hub / "shards/model.safetensors").unlink()
    assert fetch(url, target, SUMS) == 1
    assert held(target) == FILES


def test_a_missing_file_and_a_dead_server_are_told_by_address(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    url, hub = server
    (hub / "config.json").unlink()
    with pytest.raises(FetchError, match=r"config\.json: HTTP 404"):
        fetch(url, tmp_path / "a", SUMS)
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/config\.json"):
        fetch("http://127.0.0.1:9", tmp_path / "b", SUMS)


@pytest.mark.parametrize("text", ["", "abc  config.json", f"{'0' * 64}  ../up", f"{'0' * 64}  /root"])
def test_bad_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"sha256sum|out of the folder|empty"):
        parse_sums(text)


def test_the_command_tells_what_it_did(server: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = server
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{digest}  {name}\n" for name, digest in SUMS.items()))
    command = ["fetch", url, str(tmp_path / "models"), "--sums", str(sums)]
    assert "2 files came" in CliRunner().invoke(app, command).output
    assert "all there" in CliRunner().invoke(app, command).output
    sums.write_text("nonsense")
    assert CliRunner().invoke(app, command).exit_code == 2
