"""Whole characters through the whole engine, on a model that recites a script of multi-byte characters."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.engine import Engine
from model.request import Request
from tests.model.harness import World, ask, drive
from tests.model.tiny import Shape, TwigShape, build_tokenizer

SCRIPT = "Aé🌍日b語!"
MAX_TOKENS = 40


def recite(vlm: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Layers that write nothing, and a head in which every token of the script calls the next one."""
    chain = [tokenizer.bos_token_id, *tokenizer.encode(SCRIPT), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "a token that occurs twice has no one successor"
    with torch.no_grad():
        for layer in vlm.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        vlm.model.language_model.norm.weight.fill_(1.0)
        vlm.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            vlm.lm_head.weight[following] = vlm.get_input_embeddings().weight[token]


@pytest.fixture(scope="module")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.create(tmp_path_factory.mktemp("reciter"), Shape(), TwigShape(), edit=recite)


@pytest.fixture(scope="module")
def engine(reciter: World) -> Engine:
    return reciter.engine()


def request(world: World, **options: object) -> Request:
    return ask(world.prompt(0), **({"max_tokens": MAX_TOKENS} | options))


@pytest.mark.parametrize("speculation", [False, True])
def test_the_script_arrives_in_whole_characters(reciter: World, engine: Engine, speculation: bool) -> None:
    (trace,) = drive(engine, [request(reciter, speculation=speculation)]).values()
    assert trace.result.text == trace.text == SCRIPT
    assert trace.result.finish_reason == "stop"
    assert not any("\ufffd" in output.text for output in trace.outputs)
    assert trace.result.accepted_tokens == (trace.result.draft_tokens if speculation else 0)


def test_every_resumed_part_completes_the_delivered_one(reciter: World, engine: Engine) -> None:
    """A client has the whole characters of the tokens delivered; the rest begins with the next one."""
    tokens = [*build_tokenizer().encode(SCRIPT), reciter.tokenizer.eos_token_id]
    for cut in range(len(tokens)):
        (first,) = drive(engine, [request(reciter, speculation=False)]).values()
        delivered = "".join(output.text for output in first.outputs[:cut])
        (rest,) = drive(engine, [request(reciter, resume=tokens[:cut])]).values()
        assert delivered + rest.text == SCRIPT
        assert rest.result.text == SCRIPT


def test_a_limit_within_a_character_still_gives_its_bytes(reciter: World, engine: Engine) -> None:
    """Cut short, the half character shows as the tokenizer shows it; nothing is swallowed."""
    tokens = build_tokenizer().encode(SCRIPT)
    for limit in range(1, len(tokens) + 1):
        (trace,) = drive(engine, [request(reciter, max_tokens=limit)]).values()
        assert trace.result.finish_reason == "length"
        assert trace.text == reciter.tokenizer.decode(tokens[:limit])
