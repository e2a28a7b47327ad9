"""Native kernels against torch's operations, and against themselves: the same bits in every company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import LayerGroup
from model.checkpoint import layer_shapes
from model.decoder import DecoderLayer, DecoderShape, rotary_table
from model.native.library import Library, load_library
from model.native.stack import NativeStack
from model.stack import TorchStack
from tests.model.harness import World, run
from tests.model.test_batching import mixed

CPU = torch.device("cpu")
SLOTS, POSITIONS = 5, 200


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
def test_kernels_are_given_what_fits_alone(library: Library) -> None:
    """Angles cut short at the end of their table were read beyond it."""
    pair = Pair(library, SHAPES[1], torch.float32, [5] * SLOTS)
    x, cis = pair.inputs([0, 1], [2, 3])
    for states, angles, slots in ((x, cis[:4], [0, 1]), (x[:4], cis, [0, 1]), (x, cis, [0, SLOTS])):
        with pytest.raises((ValueError, IndexError)):
            pair.native(states, angles, slots, [2, 3])
    with pytest.raises(ValueError, match="do not fit"):
        pair.native(x, cis, [0, 1], [2, 3], offsets=-6)


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
