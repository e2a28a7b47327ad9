"""The Hub's `llava-hf/llava-1.5-7b-hf` and the published twig in miniature: every file and every tensor name.

Depth (32 layers, 24 in the tower), vocabulary (32,000 and padding to 32,064), token ids, picture size and
M = 576 are theirs; hidden sizes are tiny. Tensors are drawn here name by name, so that no reader can agree
with its own writer. Left out: `tokenizer.model`, the same words once more in another format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

LAYERS, TOWER_LAYERS, VOCABULARY, WORDS = 32, 24, 32064, 32000
HIDDEN, INTERMEDIATE, HEADS = 32, 48, 2
TOWER_HIDDEN, TOWER_INTERMEDIATE, TOWER_HEADS = 16, 32, 2
PATCHES, PATCH = 576, 14
IMAGE, PAD = 32000, 32001
SHARDS = 3

Shapes = dict[str, tuple[int, ...]]
Rename = Callable[[str], str]

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": IMAGE,
    "model_type": "llava",
    "pad_token_id": PAD,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": VOCABULARY,
        # Theirs are LLaMA's own defaults and not written down; ours are tiny.
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
    },
    "torch_dtype": "float16",
    "transformers_version": "4.37.0.dev0",
    "vision_config": {
        "hidden_size": TOWER_HIDDEN,
        "image_size": 336,
        "intermediate_size": TOWER_INTERMEDIATE,
        "model_type": "clip_vision_model",
        "num_attention_heads": TOWER_HEADS,
        "num_hidden_layers": TOWER_LAYERS,
        "patch_size": PATCH,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
PREPROCESSOR = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
PROCESSOR = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": PATCH,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}"
    "{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GENERATION = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
    "transformers_version": "4.36.0.dev0",
}
SPECIALS = {0: "<unk>", 1: "<s>", 2: "</s>", IMAGE: "<image>", PAD: "<pad>"}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "added_tokens_decoder": {
        str(number): {
            "content": word,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, word in SPECIALS.items()
    },
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "extra_special_tokens": {"image_token": "<image>"},
    "image_token": "<image>",
    "legacy": False,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "left",
    "processor_class": "LlavaProcessor",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "trust_remote_code": False,
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}


def decoder_layer(prefix: str) -> Shapes:
    square = (HIDDEN, HIDDEN)
    return {
        f"{prefix}input_layernorm.weight": (HIDDEN,),
        f"{prefix}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        f"{prefix}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
        **{f"{prefix}self_attn.{name}_proj.weight": square for name in "koqv"},
    }


def affine(name: str, out: int, *inner: int) -> Shapes:
    return {f"{name}.weight": (out, *inner), f"{name}.bias": (out,)}


def tower_layer(prefix: str) -> Shapes:
    width, inner = TOWER_HIDDEN, TOWER_INTERMEDIATE
    shapes = affine(f"{prefix}mlp.fc1", inner, width) | affine(f"{prefix}mlp.fc2", width, inner)
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= affine(prefix + name, width)
    for name in ("k", "out", "q", "v"):
        shapes |= affine(f"{prefix}self_attn.{name}_proj", width, width)
    return shapes


def base_shapes() -> Shapes:
    """The names of the Hub's index, in full."""
    tower = "vision_tower.vision_model."
    shapes: Shapes = {
        "language_model.lm_head.weight": (VOCABULARY, HIDDEN),
        "language_model.model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "language_model.model.norm.weight": (HIDDEN,),
        f"{tower}embeddings.class_embedding": (TOWER_HIDDEN,),
        f"{tower}embeddings.patch_embedding.weight": (TOWER_HIDDEN, 3, PATCH, PATCH),
        f"{tower}embeddings.position_embedding.weight": (PATCHES + 1, TOWER_HIDDEN),
        **affine(f"{tower}post_layernorm", TOWER_HIDDEN),
        **affine(f"{tower}pre_layrnorm", TOWER_HIDDEN),
        **affine("multi_modal_projector.linear_1", HIDDEN, TOWER_HIDDEN),
        **affine("multi_modal_projector.linear_2", HIDDEN, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= decoder_layer(f"language_model.model.layers.{layer}.")
    for layer in range(TOWER_LAYERS):
        shapes |= tower_layer(f"{tower}encoder.layers.{layer}.")
    return shapes


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """Weights under which answers differ and depend on every layer; the upper layers write less."""
    draw = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=draw)
        if len(shape) == 1:
            noise = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise
        elif "embed_tokens" not in name:
            noise = noise / noise[0].numel() ** 0.5
        if "lm_head" in name:
            noise = 3 * noise
        if name.endswith(("o_proj.weight", "down_proj.weight")) and ".layers.0." not in name:
            noise = 0.3 * noise
        tensors[name] = noise.half()
    return tensors


def older_names(name: str) -> str:
    """As on the Hub."""
    return name


def newer_names(name: str) -> str:
    """As transformers' state dict has called them since `model.language_model` came."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def tokenizer() -> Tokenizer:
    """LLaMA's kind: pieces with byte fallback. Few words are real, the rest fills the vocabulary."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *(chr(code) for code in range(33, 127)), "▁t", "he", "▁the", "▁im", "ag", "age", "▁image"]
    words += [f"word{number}" for number in range(WORDS - len(words))]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "g"), ("ag", "e")]
    pieces = models.BPE(
        vocab={word: number for number, word in enumerate(words)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(pieces)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIALS.values()])
    return made


def write_shards(directory: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    # Not at a layer's border: a layer's tensors lie in two files, as they do on the Hub.
    cuts = [len(names) * shard // SHARDS for shard in range(SHARDS + 1)]
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = {name: tensors[name] for name in names[cuts[shard] : cuts[shard + 1]]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_base(directory: Path, tensors: dict[str, Tensor], rename: Rename = older_names) -> Path:
    directory.mkdir(parents=True)
    files = {
        "config.json": CONFIG,
        "generation_config.json": GENERATION,
        "preprocessor_config.json": PREPROCESSOR,
        "processor_config.json": PROCESSOR,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "special_tokens_map.json": {
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "image_token": "<image>",
        },
        "added_tokens.json": {"<image>": IMAGE, "<pad>": PAD},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2))
    tokenizer().save(str(directory / "tokenizer.json"))
    write_shards(directory, {rename(name): tensor for name, tensor in tensors.items()})
    return directory


def write_twig(directory: Path, tensors: dict[str, Tensor], fork_layer: int, twig_layers: int) -> Path:
    """As published: a head without the padding rows, and no twig_config.json."""
    directory.mkdir(parents=True)
    twig = {
        "lm_head.weight": tensors["language_model.lm_head.weight"][:WORDS].contiguous(),
        "model.norm.weight": tensors["language_model.model.norm.weight"],
    }
    for layer in range(twig_layers):
        source = f"language_model.model.layers.{fork_layer + layer}."
        twig |= {
            f"model.layers.{layer}.{name.removeprefix(source)}": tensors[name]
            for name in decoder_layer(source)
        }
    save_file(twig, directory / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG["text_config"] | {"num_hidden_layers": twig_layers, "vocab_size": WORDS}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
