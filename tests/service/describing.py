"""`twigserve describe` as its tests call it: in a thread, in a folder of pictures and other files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from service.cli import app
from service.protocol import DoneData, ErrorData, Job, TokenData
from tests.service.scripted_worker import Script, apple
from tests.service.test_describe import PNG


def saying(text: str) -> Script:
    """In one round."""

    def script(job: Job) -> tuple[list[TokenData], DoneData | ErrorData]:
        _, done = apple(job)
        assert isinstance(done, DoneData)
        token = TokenData(text=text, token_ids=(0,), drafted=(False,))
        return [token], done.model_copy(update={"text": text, "token_ids": (0,)})

    return script


async def describe(*arguments: str, stdin: bytes | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["describe", *arguments], input=stdin)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.png", "b.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    for name, text in (("notes", "no picture"), ("two-keys", "twig-a\ntwig-b\n"), ("no-key", "\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path
