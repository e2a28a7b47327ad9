"""The `mid` model: a seeded random LLaVA of about 400 M parameters and a twig with realistic acceptance.

How acceptance is made. The twig is a copy of the base's layers K..K+T-1, norm and head, so it would agree
with the base in everything if the layers above it added nothing. They add little: what they write to the
residual stream is scaled by UPPER_SCALE, which moves the base's choice away from the twig's in about one
token of three, and more often where the twig is unsure, as with a trained twig. ATTENTION_SCALE keeps what
all tokens see of the picture from drowning the token itself, for then answers run in small circles; and since
the twig sees all of the picture and the pruned layers a ninth, it also says how far pruning parts the two
(docs/log.md has what both give). The head is scaled so that the best token of 32,000 has a probability
like a language model's (HEAD_SPREAD). Special tokens have logit 0 and never win, so answers end at their
limit. What is accepted is measured in every run.
Invariant: the same seed gives the same files.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from model.checkpoint import TWIG_FILE, WEIGHTS_FILE
from model.config import TwigConfig

SEED = 20260
VOCABULARY, SPECIALS = 32_000, ("<unk>", "<s>", "</s>", "<pad>", "<image>")
IMAGE_SIDE, PATCH = 336, 14
TWIG = TwigConfig(fork_layer=2, twig_layers=2, drop_layer=18, retained_tokens=64, base_model="mid")
UPPER_SCALE, ATTENTION_SCALE, HEAD_SPREAD = 0.045, 0.1, 12.0
CHAT_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %} ASSISTANT:"
)


def write_mid(directory: Path) -> tuple[Path, Path]:
    """Writes base and twig where they are not yet; returns their directories."""
    base, twig = directory / "mid" / "base", directory / "mid" / "twig"
    if not (twig / TWIG_FILE).exists():  # the last file to be written
        tokenizer = _tokenizer()
        vlm = _random_base(_config(tokenizer))
        vlm.save_pretrained(base)
        _processor(tokenizer).save_pretrained(base)
        _write_twig(vlm, twig)
    return base, twig


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and fillers that no text is ever split into."""
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"w{number}" for number in range(VOCABULARY - len(pieces))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        dtype=torch.bfloat16,
    )


@torch.no_grad()
def _random_base(config: LlavaConfig) -> LlavaForConditionalGeneration:
    with torch.device("meta"):
        vlm = LlavaForConditionalGeneration(config)
    vlm = vlm.to(torch.bfloat16).to_empty(device="cpu").eval()
    draw = torch.Generator().manual_seed(SEED)
    for name, weight in vlm.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.fill_(1.0)
        elif name.endswith("bias"):
            weight.zero_()
        else:
            spread = 1.0 if "embed" in name else weight[0].numel() ** -0.5
            weight.normal_(0.0, spread, generator=draw)
    for index, layer in enumerate(vlm.model.language_model.layers):
        scale = UPPER_SCALE if index >= TWIG.fork_layer + TWIG.twig_layers else 1.0
        layer.self_attn.o_proj.weight.mul_(scale * ATTENTION_SCALE)
        layer.mlp.down_proj.weight.mul_(scale)
    vlm.lm_head.weight.mul_(HEAD_SPREAD)
    vlm.lm_head.weight[: len(SPECIALS)] = 0
    vlm.generation_config.eos_token_id = config.text_config.eos_token_id
    vlm.generation_config.pad_token_id = config.text_config.pad_token_id
    return vlm


def _processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _write_twig(vlm: LlavaForConditionalGeneration, directory: Path) -> None:
    language = vlm.model.language_model
    tensors = {"lm_head.weight": vlm.lm_head.weight, "model.norm.weight": language.norm.weight}
    for index in range(TWIG.twig_layers):
        for name, tensor in language.layers[TWIG.fork_layer + index].state_dict().items():
            tensors[f"model.layers.{index}.{name}"] = tensor
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, directory / WEIGHTS_FILE
    )
    (directory / TWIG_FILE).write_text(json.dumps(TWIG.to_dict(), indent=2))
