"""`twigserve describe`: against a gateway on a port with a scripted worker, and once with the engine here."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.cli.describe import check_keep_map, read_key
from service.cli.pictures import NamedPicture, find
from service.client import Client
from service.protocol import ErrorData
from tests.e2e.service_process import ROOT
from tests.service.describing import describe
from tests.service.gateway_fixture import Live, eventually
from tests.service.scripted_worker import WORDS, ScriptedWorker, apple, failing
from tests.service.test_describe import PNG

TEXT = "".join(WORDS)


async def test_one_picture_at_a_service(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    done = await describe("a.png", "--server", live.url, "--prompt", "What is it?", "--quality", "balanced")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == TEXT
    assert "acceptance 60.0% of 10 drafted tokens, pruned 55.6% of 36 visual tokens" in done.stdout
    (job,) = worker.jobs
    assert (job.prompt, job.params.retained_tokens, job.params.token_map) == ("What is it?", 16, False)


async def test_several_pictures_and_patterns(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    done = await describe("**/*.png", "--server", live.url, "--json", "--no-speculation")
    assert done.exit_code == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == ["a.png", "b.png", "deep/c.png"]
    assert {answer["text"] for answer in answers} == {TEXT}
    assert not any(job.params.speculation for job in worker.jobs)


async def test_standard_input_and_a_stream(live: Live, worker: ScriptedWorker) -> None:
    done = await describe("-", "--server", live.url, "--stream", stdin=PNG)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == TEXT


async def test_a_keep_map_for_each(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    done = await describe("a.png", "b.png", "--server", live.url, "--keep-map", "kept/{name}.png")
    assert done.exit_code == 0
    for name in ("a", "b"):
        with Image.open(folder / f"kept/{name}.png") as drawn:
            assert drawn.size == (144, 144)


async def test_a_keep_map_at_a_newer_service(
    live: Live, worker: ScriptedWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model cards have fields that we do not know."""
    models = Client.models
    monkeypatch.setattr(Client, "models", lambda self: [with_colour(model) for model in models(self)])
    done = await describe("a.png", "--server", live.url, "--keep-map", "kept.png")
    assert done.exit_code == 0, done.exception
    assert "kept.png: 3 patches kept" in done.stderr


async def test_a_keep_map_whose_model_is_gone_does_not_stop_the_others(
    live: Live, worker: ScriptedWorker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a roll-out of the workers: answered, and then nobody is ready for a moment."""
    models, calls = Client.models, itertools.count()
    monkeypatch.setattr(Client, "models", lambda self: models(self) if next(calls) else [])
    done = await describe("a.png", "b.png", "--server", live.url, "--keep-map", "kept/{name}.png")
    assert done.exit_code == 1
    assert "a.png: the service no longer serves scripted" in done.stderr
    assert [path.name for path in (folder / "kept").iterdir()] == ["b.png"]


def with_colour(model: dict[str, Any]) -> dict[str, Any]:
    image = model["card"]["image"] | {"colour": "rgb"}
    return model | {"card": model["card"] | {"image": image, "colour": 1}}


# --- exit codes ---


async def test_one_bad_picture_does_not_stop_the_others(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    done = await describe("notes.txt", "a.png", "--server", live.url)
    assert done.exit_code == 1
    assert TEXT in done.stdout
    assert "notes.txt" in done.stderr
    assert "notes.txt" not in done.stdout


async def test_a_picture_beyond_any_body_does_not_stop_the_others(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    """The body is refused before anybody looks for a picture in it: no `param` says whose fault it is."""
    (folder / "huge.png").write_bytes(PNG + b"0" * 2_000_000)
    done = await describe("huge.png", "a.png", "--server", live.url)
    assert done.exit_code == 1
    assert "huge.png: The body is too large" in done.stderr
    assert TEXT in done.stdout


async def test_a_failure_stands_on_a_line_of_its_own(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    worker.script = lambda job: (apple(job)[0], ErrorData(message="The engine broke.", code="engine_error"))
    done = await describe("a.png", "--server", live.url, "--stream")
    assert done.exit_code == 3
    assert TEXT in done.stdout.splitlines()
    assert "twigserve: The engine broke." in done.output.splitlines()  # perhaps beside a log


async def test_a_job_that_somebody_cancelled_is_no_wrong_use(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    worker.script = failing(ErrorData(message="It was cancelled.", code="cancelled"))
    done = await describe("a.png", "--server", live.url)
    assert done.exit_code == 3
    assert "cancelled" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing.png"],
        ["*.jpeg"],
        ["deep"],
        ["-", "-"],
        ["a.png", "--quality", "fast", "--retained-tokens", "8"],
        ["a.png", "--server", "http://127.0.0.1:9", "--model", "embedded"],
        ["a.png", "b.png", "--keep-map", "one.png"],
        ["a.png", "a.png", "--keep-map", "{name}.png"],
        ["a.png", "--keep-map", "one.map"],
        ["a.png", "b.png", "--keep-map", "deep/../{name}.png", "--server", "http://127.0.0.1:9"],
        ["a.png", "--keep-map", "opened-only.psd"],
        ["a.png", "--keep-map", "notes.txt/{name}.png", "--server", "http://127.0.0.1:9"],
        ["a.png", "--api-key-file", "key.txt"],
        ["a.png", "--server", "localhost:8000"],
        ["a.png", "--server", "http://[::1"],
        ["a.png", "--server", "http://127.0.0.1:9", "--api-key-file", "two-keys.txt"],
        ["a.png", "--server", "http://127.0.0.1:9", "--api-key-file", "no-key.txt"],
        ["a.png", "--server", "http://127.0.0.1:9", "--api-key-file", "a.png"],
    ],
    ids=" ".join,
)
async def test_wrong_use_is_one_line(folder: Path, arguments: list[str]) -> None:
    done = await describe(*arguments)
    assert done.exit_code == 2, done.exception
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert "twig-" not in done.stderr  # no key is told


async def test_a_refused_option_is_wrong_use(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    done = await describe("a.png", "--server", live.url, "--retained-tokens", "35")
    assert done.exit_code == 2
    assert "retained_tokens" in done.stderr


async def test_no_service_is_told_apart(live: Live, folder: Path) -> None:
    done = await describe("a.png", "--server", "http://127.0.0.1:9")
    assert done.exit_code == 3
    assert done.stderr.startswith("twigserve: ")


async def test_a_failed_job_is_the_services(live: Live, worker: ScriptedWorker, folder: Path) -> None:
    worker.script = failing(ErrorData(message="The engine broke.", code="engine_error"))
    done = await describe("a.png", "--server", live.url)
    assert done.exit_code == 3
    assert "The engine broke." in done.stderr


async def test_an_interrupt_stops_the_work_at_the_service(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    worker.hold()
    command = [sys.executable, "-m", "service.cli", "describe", "a.png", "b.png", "--server", live.url]
    asking = await asyncio.create_subprocess_exec(*command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    await eventually(lambda: bool(worker.jobs))  # Python starts
    asking.send_signal(signal.SIGINT)
    assert await asking.wait() == 130
    await eventually(lambda: bool(worker.cancelled))
    assert worker.cancelled == [job.id for job in worker.jobs]
    worker.resume()


@pytest.mark.usefixtures("headless")
async def test_an_interrupt_before_the_job_is_known_stops_the_work(
    live: Live, worker: ScriptedWorker, folder: Path
) -> None:
    await test_an_interrupt_stops_the_work_at_the_service(live, worker, folder)


async def test_the_help_tells_the_exit_codes() -> None:
    done = await describe("--help")
    assert "Exit codes" in " ".join(done.stdout.split())


# --- parts by themselves ---


@pytest.mark.timeout(20)
def test_a_pattern_follows_no_links_into_folders(folder: Path) -> None:
    """Two links to a folder above them once kept it busy for ever; one gave each picture 41 times."""
    for name in ("here", "deep/up", "deep/again"):
        (folder / name).symlink_to(folder)
    (folder / ".hidden").mkdir()
    (folder / ".hidden/d.png").write_bytes(PNG)
    pictures = ["a.png", "b.png", "deep/c.png"]
    for pattern in ("**/*.png", "./**/*.png", "**/**/*.png"):
        assert [picture.name for picture in find([pattern])] == pictures
    assert [picture.name for picture in find([f"{folder}/**"])] == [
        str(folder / name) for name in (*pictures, "no-key.txt", "notes.txt", "two-keys.txt")
    ]
    assert [picture.name for picture in find(["de*/**/?.png", ".h*/**/*.png", "here/*.png"])] == [
        *("deep/c.png", ".hidden/d.png", "here/a.png", "here/b.png")
    ]


def test_a_key_file_of_any_editor(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_bytes(b"\xef\xbb\xbftwig-a\r\n")
    assert read_key(tmp_path / "key.txt") == "twig-a"


def test_many_pictures_are_checked_soon(tmp_path: Path) -> None:
    """Each name was once looked for among all: a minute for fifty thousand."""
    began = time.monotonic()
    check_keep_map(tmp_path / "{name}.png", [NamedPicture(f"{i}.png") for i in range(50_000)])
    assert time.monotonic() - began < 20


def test_a_name_with_brackets_is_a_file_first(folder: Path) -> None:
    (folder / "[x].png").write_bytes(PNG)
    assert [picture.name for picture in find(["[x].png", "[ab].png"])] == ["[x].png", "a.png", "b.png"]


@pytest.mark.timeout(300)
async def test_the_engine_here(tmp_path: Path) -> None:
    """The shipped weights, a few tokens: the same words as the HTTP API, and a keep-map."""
    kept = tmp_path / "kept.png"
    picture = str(ROOT / "docs/samples/castle.png")
    options = ["--max-tokens", "6", "--quality", "fast", "--keep-map", str(kept), "--json"]
    done = await describe(picture, *options, "--dtype", "float32", "--threads", "1")
    assert done.exit_code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["text"]
    assert answer["usage"]["completion_tokens"] <= 6
    assert len(answer["token_map"]["kept"]) < answer["usage"]["prompt_tokens_details"]["image_tokens"]
    with Image.open(kept) as drawn:
        assert drawn.width == drawn.height
