"""Which kernels are compiled, found and trusted, and that torch does the work where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from model.decoder import DecoderShape
from model.native import build
from model.native.stack import supports
from tests.model.harness import IMAGE, World, ask, run
from tests.model.test_native import CPU, SHAPES


def test_what_it_does_not_take_goes_to_torch(tame: World) -> None:
    shape = SHAPES[0]
    assert supports(shape, torch.bfloat16, CPU)
    assert not supports(shape, torch.float16, CPU)
    assert not supports(DecoderShape(24, 23, 3, 3, 8, 1e-5, 77), torch.float32, CPU)
    assert not supports(DecoderShape(24, 22, 3, 2, 8, 1e-5, 77), torch.float32, CPU)
    assert tame.engine(kernels="torch").kernels == "torch"


def test_without_a_compiler_torch_does_the_work(
    tame: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "none")
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    assert build.find_or_compile() is None
    assert "g++" in caplog.text
    monkeypatch.setattr("model.vlm.load_library", lambda: None)
    engine = tame.engine()
    assert engine.kernels == "torch"
    prompt = tame.prompt(1, 5, IMAGE, 3)
    assert run(engine, ask(prompt))[0].token_ids == run(tame.engine(), ask(prompt))[0].token_ids


def test_a_user_without_a_home_gets_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    monkeypatch.setattr(build.Path, "home", homeless)
    monkeypatch.setattr(build, "levels", lambda: ["AVX512", "AVX2"])
    assert build.find_or_compile() is None
    assert build.obtainable() is None
    tmp_path.chmod(0o700)
    (tmp_path / build.library_name("AVX2")).write_bytes(b"")
    assert build.find_or_compile() == tmp_path / build.library_name("AVX2")


def test_a_library_that_others_may_have_written_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "none")
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path)
    (tmp_path / build.library_name(build.level())).write_bytes(b"")
    tmp_path.chmod(0o700)
    assert build.find() == tmp_path / build.library_name(build.level())
    tmp_path.chmod(0o777)
    assert build.find() is None
    with pytest.raises(build.BuildError, match="others may write"):
        build.compile_to(tmp_path)
    tmp_path.chmod(0o700)


def test_an_image_carries_a_library_for_every_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is taken is the running machine's choice; a lower one does where its own cannot be had."""
    made: list[str] = []
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path / "none")
    monkeypatch.setattr(build.shutil, "which", lambda _name: "/usr/bin/g++")
    monkeypatch.setattr(build, "_run", lambda command: made.append(command[-1]) or Path(command[-1]).touch())
    monkeypatch.setattr(build, "level", lambda: "AVX2")
    tmp_path.chmod(0o700)
    build.main()
    assert {path.name for path in tmp_path.iterdir()} == {build.library_name(name) for name in build.LEVELS}
    assert build.find() == tmp_path / build.library_name("AVX2")
    monkeypatch.setattr(build, "level", lambda: "AVX512")
    assert build.find_or_compile() == tmp_path / build.library_name("AVX512")
    (tmp_path / build.library_name("AVX512")).unlink()
    monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    assert build.obtainable() == "compiled"
    assert build.find_or_compile() == tmp_path / build.library_name("AVX2")
    (tmp_path / build.library_name("AVX2")).unlink()
    assert (build.obtainable(), build.find_or_compile()) == (None, None)


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "kernels.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(build, "SOURCE", broken)
    if build.shutil.which("g++") is None:
        pytest.skip("no compiler")
    with pytest.raises(build.BuildError, match=r"kernels\.cpp"):
        build.compile_to(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
