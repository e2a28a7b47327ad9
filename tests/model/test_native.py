"""Native kernels against torch's operations, and against themselves: the same bits in every company."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import LayerGroup
from model.checkpoint import layer_shapes
from model.decoder import DecoderLayer, DecoderShape, Head, rotary_table
from model.native import build
from model.native.library import Library, load_library
from model.native.stack import NativeHead, NativeStack, quantized, supports
from model.stack import TorchStack
from tests.model.harness import IMAGE, World, ask, run
from tests.model.test_batching import mixed

CPU = torch.device("cpu")
SLOTS, POSITIONS = 5, 200


@pytest.fixture(scope="module")
def library() -> Library:
    found = load_library()
    if found is None:
        pytest.skip("no native kernels on this machine")
    return found


def tensors_of(shape: DecoderShape, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: ((1.0 if len(size) == 1 else 0.0) + torch.randn(size, generator=draw) / size[-1] ** 0.5).to(
            dtype
        )
        for name, size in layer_shapes(shape).items()
    }


class Pair:
    """The same layers twice, in torch and in native code, over caches of the same random history."""

    def __init__(self, library: Library, shape: DecoderShape, dtype: torch.dtype, starts: list[int]) -> None:
        def layers() -> list[DecoderLayer]:
            return [DecoderLayer(tensors_of(shape, seed, dtype), shape) for seed in (1, 2)]

        def group() -> LayerGroup:
            made = LayerGroup(3, SLOTS, shape.kv_heads, shape.head_dim, dtype, CPU)
            made.reserve(POSITIONS)
            made.slab.normal_(generator=torch.Generator().manual_seed(3))
            made.lengths = list(starts)
            return made

        self.torch = TorchStack(layers(), group(), first=1)
        self.native = NativeStack(library, layers(), shape, group(), first=1)
        angles = torch.outer(torch.arange(POSITIONS), 0.1 ** torch.arange(shape.head_dim // 2).float())
        self.rope = rotary_table(angles.cos().repeat(1, 2), angles.sin().repeat(1, 2))
        self.shape, self.dtype, self.starts = shape, dtype, starts

    def inputs(self, slots: list[int], widths: list[int]) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(4)
        every = torch.randn(SLOTS, 16, self.shape.hidden, generator=draw).to(self.dtype)
        x = torch.cat([every[slot, :width] for slot, width in zip(slots, widths, strict=True)])
        where = zip(slots, widths, strict=True)
        return x, torch.cat(
            [self.rope[self.starts[slot] : self.starts[slot] + width] for slot, width in where]
        )


SHAPES = [
    DecoderShape(24, 22, 3, 3, 8, 1e-5, 77),
    DecoderShape(64, 100, 4, 2, 16, 1e-6, 320, qkv_bias=True),
    DecoderShape(128, 352, 2, 2, 64, 1e-5, 1069, qkv_bias=True, out_bias=True),
    DecoderShape(256, 96, 2, 1, 128, 1e-5, 33),
]


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"hidden{shape.hidden}")
@pytest.mark.parametrize(
    ("slots", "widths"), [([0], [1]), ([1], [14]), ([0, 1, 2, 3, 4], [1] * 5), ([0, 2, 3], [3, 1, 9])]
)
def test_a_stack_equals_torch(
    library: Library, shape: DecoderShape, slots: list[int], widths: list[int]
) -> None:
    pair = Pair(library, shape, torch.float32, [0, 5, 40, 41, 150])
    x, cis = pair.inputs(slots, widths)
    expected, found = pair.torch(x, cis, slots, widths), pair.native(x, cis, slots, widths)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair.native.group.slab, pair.torch.group.slab, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"hidden{shape.hidden}")
@pytest.mark.parametrize("start", [0, 7])
def test_scores_equal_torch(library: Library, shape: DecoderShape, start: int) -> None:
    pair = Pair(library, shape, torch.float32, [start] * SLOTS)
    x, cis = pair.inputs([1], [16])
    expected, found = pair.torch.fill_scored(x, cis, 1), pair.native.fill_scored(x, cis, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.native.group.slab, pair.torch.group.slab, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize("width", [1, 2, 9])
def test_bf16_equals_float32_but_for_rounding(library: Library, head_dim: int, width: int) -> None:
    """Halves of bf16 pairs come in an order of their own; in float32 a wrong one would not be seen."""
    shape = DecoderShape(128, 96, 4, 2, head_dim, 1e-5, 33)
    rough, exact = (Pair(library, shape, dtype, [41] * SLOTS) for dtype in (torch.bfloat16, torch.float32))
    exact.torch.group.slab.copy_(rough.native.group.slab)
    x, cis = rough.inputs([1], [width])
    found, expected = rough.native(x, cis, [1], [width]), exact.torch(x.float(), cis, [1], [width])
    assert (found - expected).norm() < 0.02 * expected.norm()
    found, expected = rough.native.fill_scored(x, cis, 1), exact.torch.fill_scored(x.float(), cis, 1)
    assert (found - expected).norm() < 0.05 * expected.norm()


@torch.inference_mode()
@settings(max_examples=25)
@given(
    widths=st.lists(st.integers(1, 14), min_size=1, max_size=SLOTS),
    threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shape=st.sampled_from(SHAPES),
)
def test_a_row_has_the_same_bits_in_every_company(
    widths: list[int], threads: int, dtype: torch.dtype, shape: DecoderShape
) -> None:
    """Token by token and alone, or many at once among others: not a bit differs."""
    library = load_library()
    if library is None:
        pytest.skip("no native kernels on this machine")
    together, alone = (Pair(library, shape, dtype, [0, 5, 40, 41, 150]) for _ in range(2))
    slots, before = list(range(len(widths))), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = together.native(*together.inputs(slots, widths), slots, widths)
    finally:
        torch.set_num_threads(before)
    expected = []
    for slot, width in enumerate(widths):
        x, cis = alone.inputs([slot], [width])
        expected += [alone.native(x[i : i + 1], cis[i : i + 1], [slot], [1], offsets=i) for i in range(width)]
    assert torch.equal(found, torch.cat(expected))
    assert torch.equal(together.native.group.slab, alone.native.group.slab)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"vocabulary{shape.vocabulary}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 13, 40])
def test_a_head_equals_torch(library: Library, shape: DecoderShape, dtype: torch.dtype, rows: int) -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=draw).to(dtype)
    norm = (1 + 0.1 * torch.randn(shape.hidden, generator=draw)).to(dtype)
    exact = Head(norm.float(), Head(torch.ones_like(norm), weight * norm, shape).weight.t().float(), shape)
    exact.weight = Head(norm, weight, shape).weight.float()
    native = NativeHead(library, Head(norm, weight, shape), shape.norm_eps)
    x = torch.randn(rows, shape.hidden, generator=draw)
    torch.testing.assert_close(native(x), exact(x), rtol=1e-4, atol=1e-4)
    tokens, probabilities = native.propose(x)
    assert tokens == native(x).argmax(-1).tolist() == native.choose(x)
    expected = native(x).softmax(-1).max(-1).values
    torch.testing.assert_close(torch.tensor(probabilities), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"vocabulary{shape.vocabulary}")
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_a_head_that_only_drafts_has_integers(library: Library, shape: DecoderShape, rows: int) -> None:
    """What it computes is the product with its rounded weights, which are near the given ones."""
    draw = torch.Generator().manual_seed(6)
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=draw).bfloat16()
    weight[3] = 0  # a column that nothing is to be divided by
    norm = torch.ones(shape.hidden, dtype=torch.bfloat16)
    whole, scales = quantized(Head(norm, weight, shape).weight)
    native = NativeHead(library, Head(norm, weight, shape), shape.norm_eps, drafts_only=True)
    x = torch.randn(rows, shape.hidden, generator=draw)
    normed = x * (x.square().mean(-1, keepdim=True) + shape.norm_eps).rsqrt()
    torch.testing.assert_close(native(x), normed @ (whole * scales), rtol=1e-4, atol=1e-4)
    assert whole.abs().amax(0).eq(127).sum() == shape.vocabulary - 1
    assert ((whole * scales).t() - weight).abs().amax() <= 0.51 * scales.max()
    tokens, probabilities = native.propose(x)
    assert tokens == native(x).argmax(-1).tolist()
    expected = native(x).softmax(-1).max(-1).values
    torch.testing.assert_close(torch.tensor(probabilities), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"vocabulary{shape.vocabulary}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drafts_only", [False, True])
def test_a_heads_row_has_the_same_bits_in_every_company(
    library: Library, shape: DecoderShape, dtype: torch.dtype, drafts_only: bool
) -> None:
    draw = torch.Generator().manual_seed(8)
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=draw).to(dtype)
    head = Head(torch.ones(shape.hidden, dtype=dtype), weight, shape)
    native = NativeHead(library, head, shape.norm_eps, drafts_only=drafts_only)
    x = torch.randn(14, shape.hidden, generator=draw)
    alone = torch.cat([native(row[None]) for row in x])
    for rows in range(2, 15):
        assert torch.equal(native(x[:rows]), alone[:rows])


def test_weights_that_are_no_numbers_are_told(library: Library) -> None:
    weight = torch.ones(SHAPES[1].vocabulary, SHAPES[1].hidden, dtype=torch.bfloat16)
    weight[7, 3] = torch.inf
    head = Head(torch.ones(SHAPES[1].hidden, dtype=torch.bfloat16), weight, SHAPES[1])
    with pytest.raises(ValueError, match="not finite"):
        NativeHead(library, head, 1e-5, drafts_only=True)


@torch.inference_mode()
def test_kernels_are_given_what_fits_alone(library: Library) -> None:
    """Angles cut short at the end of their table were read beyond it."""
    pair = Pair(library, SHAPES[1], torch.float32, [5] * SLOTS)
    x, cis = pair.inputs([0, 1], [2, 3])
    for states, angles, slots in ((x, cis[:4], [0, 1]), (x[:4], cis, [0, 1]), (x, cis, [0, SLOTS])):
        with pytest.raises((ValueError, IndexError)):
            pair.native(states, angles, slots, [2, 3])
    with pytest.raises(ValueError, match="do not fit"):
        pair.native(x, cis, [0, 1], [2, 3], offsets=-6)


def test_a_head_that_only_drafts_stays_exact_in_float32(library: Library) -> None:
    shape = SHAPES[1]
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=torch.Generator().manual_seed(7))
    exact, drafts = (
        NativeHead(library, Head(torch.ones(shape.hidden), weight, shape), shape.norm_eps, drafts_only=only)
        for only in (False, True)
    )
    x = torch.randn(3, shape.hidden)
    assert torch.equal(exact(x), drafts(x))


def test_bf16_answers_know_neither_drafts_nor_neighbours(tame: World, library: Library) -> None:
    """What only float32 can promise with torch's operations: one answer, however it was come by."""

    def engine(max_batch: int) -> object:
        from model.engine import Engine, EngineConfig

        config = EngineConfig(max_batch=max_batch, governor=False)
        return Engine.from_pretrained(tame.base_path, tame.twig_path, dtype="bfloat16", config=config)

    drafted = {r.request_id: r.token_ids for r in run(engine(8), *mixed(tame))}  # type: ignore[arg-type]
    solo = engine(1)
    for index, request in enumerate(mixed(tame)):
        plain = run(solo, ask_plainly(request, index))[0]  # type: ignore[arg-type]
        assert plain.token_ids == drafted[str(request.request_id)]


def ask_plainly(request: object, index: int) -> object:
    from dataclasses import replace

    return replace(request, speculation=False, request_id=f"plain{index}")  # type: ignore[type-var]


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
