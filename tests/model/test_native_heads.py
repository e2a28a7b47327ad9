"""Native heads against torch's: logits, proposals, integers where they only draft, bits in company."""

from __future__ import annotations

import pytest
import torch

from model.decoder import DecoderShape, Head
from model.native.library import Library
from model.native.stack import NativeHead, quantized
from tests.model.test_native import SHAPES


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


def test_a_head_that_only_drafts_stays_exact_in_float32(library: Library) -> None:
    shape = SHAPES[1]
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=torch.Generator().manual_seed(7))
    exact, drafts = (
        NativeHead(library, Head(torch.ones(shape.hidden), weight, shape), shape.norm_eps, drafts_only=only)
        for only in (False, True)
    )
    x = torch.randn(3, shape.hidden)
    assert torch.equal(exact(x), drafts(x))
