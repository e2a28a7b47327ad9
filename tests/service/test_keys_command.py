"""`twigserve keys`: what it prints and stores, and who changes the file at the same time."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from typer.testing import CliRunner

from service.callers import Caller
from service.cli import app
from service.keys import KeyFile, KeyRing, change_keys, read_keys
from tests.service.keys_fixture import entry


def test_the_command_prints_the_key_once_and_stores_its_hash(tmp_path: Path) -> None:
    path, run = tmp_path / "keys.json", CliRunner().invoke
    made = run(app, ["keys", "add", "a", "--file", str(path), "--requests-per-minute", "60"])
    batch = run(app, ["keys", "add", "b", "--file", str(path), "--priority", "batch"])
    assert (made.exit_code, batch.exit_code) == (0, 0), made.output
    ring = KeyRing(path)
    assert ring.caller(made.stdout.strip()) == Caller("a", requests_per_minute=60)
    assert ring.caller(batch.stdout.strip()) == Caller("b", priorities=("batch",))
    listed = run(app, ["keys", "list", "--file", str(path)]).stdout
    assert "a\trequests a minute: 60" in listed
    assert made.stdout.strip() not in listed
    again = run(app, ["keys", "add", "a", "--file", str(path)])
    assert again.exit_code == 2
    assert run(app, ["keys", "remove", "a", "--file", str(path)]).exit_code == 0
    assert run(app, ["keys", "remove", "a", "--file", str(path)]).exit_code == 2
    assert [key.name for key in read_keys(path).keys] == ["b"]


def test_keys_made_at_the_same_time_are_all_there(file: Path) -> None:
    """Each command once wrote what it had read, without what another had added meanwhile."""
    both_have_read = threading.Barrier(2)

    def add(name: str) -> None:
        def added(known: KeyFile) -> KeyFile:
            with contextlib.suppress(threading.BrokenBarrierError):  # they take turns
                both_have_read.wait(0.5)
            return known.with_key(entry(name, name))

        change_keys(file, added)

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, ("c", "d")))
    assert {key.name for key in read_keys(file).keys} == {"alice", "bob", "c", "d"}


def test_a_change_leaves_the_file_whose_and_where_it_was(file: Path, tmp_path: Path) -> None:
    """Root once took it from the gateway's user, and a link became a file of its own."""
    file.chmod(0o640)
    if os.getuid() == 0:
        os.chown(file, 12345, 23456)
    was = file.stat()
    link = tmp_path / "elsewhere.json"
    link.symlink_to(file)
    assert CliRunner().invoke(app, ["keys", "add", "c", "--file", str(link)]).exit_code == 0
    now = file.stat()
    assert link.is_symlink()
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    assert [key.name for key in read_keys(file).keys] == ["alice", "bob", "c"]
