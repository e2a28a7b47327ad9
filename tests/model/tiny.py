"""Tiny random LLaVA checkpoints and twigs on disk, for tests that need no trained weights.

Built with transformers' and safetensors' own writers alone, so that nothing of the engine can agree
with itself here. Knows the published formats, not the code that reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
CORPUS = ["the red cat sits at the top left", "a blue dog on the right", "is there a tree? yes, 日本語 🌍 é"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Changes a base's weights before they are written.
Edit = Callable[[LlavaForConditionalGeneration, PreTrainedTokenizerFast], None]


@dataclass(frozen=True)
class Shape:
    """grid**2 visual tokens an image. upper_scale shrinks what layers K.. write to the residual stream:
    the smaller, the better a twig copied from the base agrees with it."""

    seed: int = 0
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    grid: int = 4
    padded_rows: int = 8
    upper_from: int = 2
    upper_scale: float = 1.0
    attention_bias: bool = False
    max_len: int = 256

    @property
    def visual_tokens(self) -> int:
        return self.grid**2


@dataclass(frozen=True)
class TwigShape:
    fork_layer: int = 2
    twig_layers: int = 2
    drop_layer: int = 4
    retained_tokens: int | None = 8
    draft_tokens: int = 4
    draft_threshold: float = 0.2


def build_tokenizer(*extra_specials: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*SPECIALS, *extra_specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )


def build_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    hidden = shape.heads * shape.head_dim
    text = LlamaConfig(
        vocab_size=len(tokenizer) + shape.padded_rows,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_len,
        attention_bias=shape.attention_bias,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8 * shape.grid,
        patch_size=8,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.visual_tokens,
        vision_feature_layer=-2,
    )


def randomise(vlm: LlavaForConditionalGeneration, shape: Shape) -> None:
    """Weights for which greedy answers differ from prompt to prompt and depend on every layer."""
    draw = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, weight in vlm.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if weight.dim() >= 2 and "embed" not in name:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                weight.copy_(noise * 0.3)
            elif "norm" in name:
                weight.copy_(1 + noise * 0.1)
            else:
                weight.copy_(noise)
        for index, layer in enumerate(vlm.model.language_model.layers):
            layer.self_attn.q_proj.weight.mul_(2.0)
            if index >= shape.upper_from:
                layer.self_attn.o_proj.weight.mul_(shape.upper_scale)
                layer.mlp.down_proj.weight.mul_(shape.upper_scale)
        vlm.lm_head.weight.mul_(3.0)


def build_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = 8 * shape.grid
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def silence_specials(vlm: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Only ordinary tokens and EOS can win: a special or padding row has logit zero; EOS wins sometimes."""
    with torch.no_grad():
        head = vlm.lm_head.weight
        for name in ("<unk>", "<s>", "<pad>", "<image>"):
            head[tokenizer.convert_tokens_to_ids(name)] = 0
        head[len(tokenizer) :] = 0
        head[tokenizer.eos_token_id] *= 1.3


def write_base(directory: Path, shape: Shape, edit: Edit | None = None) -> LlavaForConditionalGeneration:
    tokenizer = build_tokenizer()
    vlm = LlavaForConditionalGeneration(build_config(shape, tokenizer)).eval()
    randomise(vlm, shape)
    silence_specials(vlm, tokenizer)
    if edit is not None:
        edit(vlm, tokenizer)
    vlm.generation_config.eos_token_id = tokenizer.eos_token_id
    vlm.generation_config.pad_token_id = tokenizer.pad_token_id
    vlm.save_pretrained(directory)
    build_processor(shape, tokenizer).save_pretrained(directory)
    return vlm


@torch.no_grad()
def twig_tensors(
    vlm: LlavaForConditionalGeneration, twig: TwigShape, *, noise: float = 0.0, head_rows: int | None = None
) -> dict[str, torch.Tensor]:
    """The published names. noise is relative to each tensor's own spread: 0 copies the base."""
    draw = torch.Generator().manual_seed(7)
    language = vlm.model.language_model
    tensors = {"lm_head.weight": vlm.lm_head.weight[:head_rows], "model.norm.weight": language.norm.weight}
    for index in range(twig.twig_layers):
        for name, tensor in language.layers[twig.fork_layer + index].state_dict().items():
            tensors[f"model.layers.{index}.{name}"] = tensor
    return {
        name: (tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=draw))
        .detach()
        .contiguous()
        for name, tensor in tensors.items()
    }


def write_twig(
    directory: Path,
    vlm: LlavaForConditionalGeneration,
    twig: TwigShape,
    *,
    tensors: dict[str, torch.Tensor] | None = None,
    with_config: bool = True,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = twig_tensors(vlm, twig) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    llama = vlm.config.text_config.to_dict() | {
        "num_hidden_layers": twig.twig_layers,
        "vocab_size": tensors["lm_head.weight"].shape[0] if "lm_head.weight" in tensors else 0,
        "architectures": ["LlamaForCausalLM"],
    }
    (directory / "config.json").write_text(json.dumps(llama))
    if with_config:
        extra = {"base_model": "tiny", "base_sha256": ""}
        (directory / "twig_config.json").write_text(json.dumps(asdict(twig) | extra))
    return directory


def with_draft(twig: TwigShape, tokens: int, threshold: float) -> TwigShape:
    return replace(twig, draft_tokens=tokens, draft_threshold=threshold)
