"""The decoder layer, ours: norm, fused QKV, rotary, attention over our cache, fused gate/up, down.

The base and the twig both run on it. Each norm's weight is folded into the product behind it, products
are stored [in, out], and the rows of Q and K are reordered so that a rotary pair is one complex number:
the same arithmetic in fewer calls, which is what decides the speed of a small batch.
Knows nothing of model families, requests, pruning or drafts; runs under `torch.inference_mode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import Window

FUSED_ROWS = 512


@dataclass(frozen=True)
class DecoderShape:
    """What all layers of a decoder share."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    vocabulary: int
    qkv_bias: bool = False
    out_bias: bool = False


class Norm:
    """RMS norm without its weight, which lives in the product that follows. [n, hidden] -> [n, hidden]."""

    def __init__(self, hidden: int, eps: float, device: torch.device) -> None:
        self.mean = torch.full((hidden, 1), 1.0 / hidden, device=device)
        self.eps = torch.full((1, 1), eps, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.addmm(self.eps, wide * wide, self.mean).rsqrt_()).to(x.dtype)


def fused(parts: Iterable[Tensor], columns: int, norm: Tensor | None = None) -> Tensor:
    """Products [out, in] as one [in, columns], one behind the other, the norm before them inside.

    parts are taken one at a time and in bands: what loading holds beside the weights is one product.
    """
    out, at = None, 0
    for weight in parts:
        out = weight.new_empty(weight.shape[1], columns) if out is None else out
        for band in weight.split(FUSED_ROWS):
            product = band if norm is None else band.float() * norm.float()
            out[:, at : at + len(band)] = product.t()
            at += len(band)
    if out is None or at != columns:
        raise ValueError(f"products of {at} columns in all, expected {columns}")
    return out


def pair_order(heads: int, head_dim: int) -> Tensor:
    """Row order that puts element i of a head next to element i + head_dim/2, its rotary partner."""
    within = torch.arange(head_dim).view(2, head_dim // 2).t().reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + within).view(-1)


def rotate_(x: Tensor, cis: Tensor) -> None:
    """Turns each pair of x [n, heads, head_dim] by cis [n, 1, head_dim/2] (complex), in place."""
    pairs = x.view(x.shape[0], x.shape[1], -1, 2)
    if x.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(cis)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(cis)))


class LayerWeights(NamedTuple):
    """Products [in, out] with the norm before them inside, as `DecoderLayer` makes them."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None
    out_bias: Tensor | None


class DecoderLayer:
    """One layer, from tensors by their LLaMA names (`self_attn.q_proj.weight`, ...; biases optional)."""

    def __init__(self, tensors: Mapping[str, Tensor], shape: DecoderShape) -> None:
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.rotated = shape.heads + shape.kv_heads
        queries, keys = shape.heads * self.head_dim, shape.kv_heads * self.head_dim

        def attention(kind: str) -> Iterator[Tensor]:
            for name, heads in (("q", shape.heads), ("k", shape.kv_heads)):
                tensor = tensors[f"self_attn.{name}_proj.{kind}"]
                yield tensor[pair_order(heads, self.head_dim).to(tensor.device)]
            yield tensors[f"self_attn.v_proj.{kind}"]

        norm = tensors["input_layernorm.weight"]
        self.norm = Norm(shape.hidden, shape.norm_eps, norm.device)
        self.qkv = fused(attention("weight"), queries + 2 * keys, norm)
        self.qkv_bias = torch.cat(list(attention("bias"))) if shape.qkv_bias else None
        self.out = fused((tensors["self_attn.o_proj.weight"],), shape.hidden)
        self.out_bias = tensors["self_attn.o_proj.bias"] if shape.out_bias else None
        gate_up = (tensors[f"mlp.{name}_proj.weight"] for name in ("gate", "up"))
        self.gate_up = fused(gate_up, 2 * shape.intermediate, tensors["post_attention_layernorm.weight"])
        self.down = fused((tensors["mlp.down_proj.weight"],), shape.hidden)

    def give_up_weights(self) -> LayerWeights:
        """To whoever keeps them in another form; the layer cannot run any more."""
        weights = LayerWeights(*(getattr(self, name) for name in LayerWeights._fields))
        for name in LayerWeights._fields:
            delattr(self, name)
        return weights

    def __call__(self, x: Tensor, cis: Tensor, window: Window, layer: int) -> Tensor:
        # x: [tokens, hidden], the window's; cis: [tokens, 1, head_dim / 2]
        qkv = self._project(self.norm(x), self.qkv)
        heads = qkv.view(x.shape[0], -1, self.head_dim)
        rotate_(heads[:, : self.rotated], cis)
        window.write(layer, qkv[:, self.heads * self.head_dim :])
        mixed = self._attend(heads[:, : self.heads], window, layer)
        x = torch.addmm(x, mixed, self.out)
        if self.out_bias is not None:
            x += self.out_bias
        gate, up = torch.mm(self.norm(x), self.gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), self.down)

    def write_keys(self, x: Tensor, cis: Tensor, window: Window, layer: int) -> None:
        """Keys and values of x alone, where the layer's output is not wanted."""
        width, bias = self.heads * self.head_dim, self.qkv_bias
        x, weight = self.norm(x), self.qkv[:, width:]
        projected = torch.mm(x, weight) if bias is None else torch.addmm(bias[width:], x, weight)
        rotate_(projected.view(x.shape[0], -1, self.head_dim)[:, : self.kv_heads], cis)
        window.write(layer, projected)

    def _attend(self, queries: Tensor, window: Window, layer: int) -> Tensor:
        """[tokens, heads, head_dim] -> [tokens, heads * head_dim], each span to its own sequences."""
        parts = queries.split(window.sizes) if len(window.sizes) > 1 else (queries,)
        mixed = []
        for part, span in zip(parts, window.spans, strict=True):
            out = F.scaled_dot_product_attention(
                part.view(span.rows, span.width, self.heads, self.head_dim).transpose(1, 2),
                span.keys[layer],
                span.values[layer],
                attn_mask=span.mask,
                is_causal=span.causal,
                enable_gqa=self.kv_heads != self.heads,
            )
            mixed.append(out.transpose(1, 2).reshape(part.shape[0], -1))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _project(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(x, weight) if self.qkv_bias is None else torch.addmm(self.qkv_bias, x, weight)

    def attention_of_last(self, x: Tensor, cis: Tensor, window: Window, layer: int) -> Tensor:
        """Attention probabilities of the last row of x, mean over heads: float32 [tokens].

        x is this layer's input for the window's only span, whose keys are already written. The fused
        attention does not give its probabilities away, and one row is cheap to repeat.
        """
        projected = self._project(self.norm(x[-1:]), self.qkv)[:, : self.heads * self.head_dim]
        queries = projected.reshape(1, self.heads, self.head_dim)
        rotate_(queries, cis[-1:])
        grouped = queries.view(self.kv_heads, -1, self.head_dim).float()
        logits = grouped @ window.spans[0].keys[layer][0].float().transpose(1, 2) * self.head_dim**-0.5
        return logits.softmax(-1).mean((0, 1))


class Head:
    """Final norm and LM head: [n, hidden] -> logits [n, vocabulary]."""

    def __init__(self, norm: Tensor, weight: Tensor, shape: DecoderShape) -> None:
        self.norm = Norm(shape.hidden, shape.norm_eps, weight.device)
        self.weight = fused((weight,), weight.shape[0], norm)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(self.norm(x), self.weight)

    def give_up_weight(self) -> Tensor:
        weight = self.weight
        del self.weight
        return weight

    def choose(self, x: Tensor) -> list[int]:
        """The greedy token after each row."""
        tokens: list[int] = self(x).argmax(-1).tolist()
        return tokens

    def propose(self, x: Tensor) -> tuple[list[int], list[float]]:
        """The greedy token after each row, and its raw probability."""
        logits = self(x).float()
        best, tokens = logits.max(-1)
        return tokens.tolist(), (best - logits.logsumexp(-1)).exp_().tolist()


def rotary_table(cos: Tensor, sin: Tensor) -> Tensor:
    """cos, sin [positions, head_dim] as transformers gives them -> complex64 [positions, 1, head_dim/2]."""
    half = cos.shape[-1] // 2
    return torch.complex(cos[:, :half].float(), sin[:, :half].float()).unsqueeze(1)
