"""A step of the embedded model's training shared by processes, and the optimizer that moves it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.device import CPU
from model.train.batches import IMAGE_TOKENS, Stage, random_batch
from model.train.optimizer import LayersAndRest
from model.train.pack import Packer
from model.train.processes import Processes
from tests.model.sharing import pool_of, run_in_two

RATE, MATRIX = 1e-2, "decoder.layers.0.weight"


@pytest.fixture
def folder(tmp_path: Path, sprites: Path) -> Path:
    (tmp_path / "sprites.npy").symlink_to(sprites)
    return tmp_path


@pytest.mark.timeout(300)  # three more processes that import torch, on however busy a machine
def test_two_processes_agree_and_share(folder: Path) -> None:
    run_in_two("tests.model.sharing", str(folder), seconds=250)
    for rank in range(2):
        seen = torch.load(folder / f"{rank}.pt")
        assert torch.equal(seen["weight"], torch.ones(2, 3)), "the lead's"
        assert torch.equal(seen["grad"], torch.full((2, 3), 0.5)), "the mean"
    np.testing.assert_allclose(
        np.load(folder / "shared.npy"), pool_of(folder, "alone.npy").features, atol=1e-2, rtol=1e-2
    )


def test_shares_are_the_whole_batch(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    pool, packer = pool_of(folder, "whole.npy"), Packer(tokenizer, IMAGE_TOKENS)
    stage = Stage((8, 16), 2, 4, 1, each=True, lists=True)
    whole = random_batch(pool, packer, stage, [3])
    for rank in range(2):
        packed, visual, scenes = random_batch(pool, packer, stage, [3], Processes(rank, 2, CPU))
        assert scenes == whole.scenes[rank::2]
        assert torch.equal(visual, whole.visual[rank::2])
        assert torch.equal(packed.ids, whole.packed.ids[rank::2, : packed.ids.shape[1]])


class Small(nn.Module):
    """Layers with a matrix and a vector, a table besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})
        self.table = nn.Embedding(5, 4)

    @property
    def first(self) -> nn.Module:
        return self.get_submodule("decoder.layers.0")


def stepped(network: Small, optimizer: LayersAndRest) -> Small:
    optimizer.zero_grad()
    network.first(network.table(torch.tensor([1, 2]))).square().sum().backward()
    optimizer.step()
    return network


def test_a_layers_matrix_steps_as_an_orthogonal_one() -> None:
    network = Small()
    before = network.get_parameter(MATRIX).detach().clone()
    optimizer = LayersAndRest(network, rate=RATE, betas=(0.9, 0.95), decay=0.0)
    moved = stepped(network, optimizer).get_parameter(MATRIX).detach() - before
    lengths = torch.linalg.svdvals(moved / RATE)
    assert lengths.max() < 2.5 * lengths[1], "of a gradient of rank two, both directions count"
    assert {len(group["params"]) for group in optimizer.param_groups} == {1}, "matrix, table, vector"


def test_it_goes_on_from_its_state() -> None:
    first, second = Small(), Small()
    optimizers = [LayersAndRest(net, rate=RATE, betas=(0.9, 0.95), decay=0.1) for net in (first, second)]
    stepped(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for network, optimizer in zip((first, second), optimizers, strict=True):
        stepped(network, optimizer)
    for name, weight in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], weight), name
