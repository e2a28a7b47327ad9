"""How much memory and time a base takes to load: `python -m model.bench.loading --help`.

Writes a random LLaVA of LLaVA-1.5-7B's widths and as many layers as asked for, loads it in a process of its
own that answers one question, prints one JSON object and deletes the files.
Peak memory is the child's resident set at its highest, mapped pages included. Linux alone tells it
(VmHWM of /proc; getrusage would count what the parent held when it forked).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 16  # the first is glibc's name for it
SHARD_BYTES = 1 << 30
DRAWN_VALUES = 1 << 20
PROMPT_WORDS, ANSWER_TOKENS = 32, 16


@dataclass(frozen=True)
class BaseShape:
    """LLaVA-1.5-7B's, where nothing else is said. layers, tower_layers: of the decoder and of the tower."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    head_dim: int = 128
    vocabulary: int = 32064
    tower_layers: int = 24
    tower_hidden: int = 1024

    def config(self) -> LlavaConfig:
        heads = self.hidden // self.head_dim
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
        )
        vision = CLIPVisionConfig(
            hidden_size=self.tower_hidden,
            intermediate_size=4 * self.tower_hidden,
            num_hidden_layers=self.tower_layers,
            num_attention_heads=max(1, self.tower_hidden // 64),
            image_size=336,
            patch_size=14,
        )
        return LlavaConfig(text_config=text, vision_config=vision, image_token_id=self.vocabulary - 1)


WARM_UP = BaseShape(1, 64, 128, 32, 100, 1, 64)


def write_random(directory: Path, shape: BaseShape, seed: int = 0) -> int:
    """A sharded bf16 checkpoint without tokenizer and image processor; returns the bytes of its weights."""
    config = shape.config()
    config.save_pretrained(directory)
    with torch.device("meta"):
        vlm = LlavaForConditionalGeneration(config)
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(vlm.state_dict(), seed)):
        file = f"model-{number:05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(state: dict[str, Tensor], seed: int) -> Iterator[dict[str, Tensor]]:
    """One drawn block, laid end to end: billions of numbers are not worth their drawing."""
    block = torch.randn(DRAWN_VALUES, generator=torch.Generator().manual_seed(seed)).bfloat16()
    shard: dict[str, Tensor] = {}
    for name, like in state.items():
        size = like.numel()
        offset = len(name) * 7919 % DRAWN_VALUES
        values = block.roll(offset).repeat(-(-size // DRAWN_VALUES))[:size].view(like.shape)
        shard[name] = values.mul_(0.02) if like.dim() > 1 else torch.ones_like(like, device="cpu").bfloat16()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def measure(directory: Path, threads: int) -> dict[str, Any]:
    """Loads and asks, in this process; memory counts from after the imports and a first, tiny load."""
    from model.engine import Engine, EngineConfig  # what is measured must not have been loaded before

    _map_every_tensor()
    with tempfile.TemporaryDirectory() as tiny:
        write_random(Path(tiny), WARM_UP)
        Engine.from_pretrained(tiny, config=EngineConfig(max_batch=1, threads=threads))
    before = _resident("VmRSS")
    started_s = time.perf_counter()
    engine = Engine.from_pretrained(directory, config=EngineConfig(max_batch=1, threads=threads))
    load_s = time.perf_counter() - started_s
    report = {"load_s": load_s, "before_bytes": before, "load_peak_bytes": _resident("VmHWM")}
    return report | _answer(engine) | {"peak_bytes": _resident("VmHWM")}


def _map_every_tensor() -> None:
    """By itself glibc maps what has 32 MB or more, as all products of a 7B have; how much it keeps of freed
    smaller ones differs from run to run."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)


def _answer(engine: Any) -> dict[str, Any]:
    from model.request import Request, SamplingParams

    draw = torch.Generator().manual_seed(1)
    image = engine.card.image
    request = Request(
        prompt_token_ids=[1, engine._adapter.image_token_id, *range(3, 3 + PROMPT_WORDS)],
        pixel_values=torch.randn(1, 3, image.height, image.width, generator=draw),
        sampling=SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True),
    )
    (result,) = engine.generate([request])
    if result.error:
        raise RuntimeError(f"the engine failed: {result.error}")
    return {
        "prompt_tokens": result.prompt_tokens,
        "ttft_s": result.ttft_s,
        "decode_tokens_per_s": (ANSWER_TOKENS - 1) / result.decode_s,
    }


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def run(shape: BaseShape, directory: Path, threads: int = 1) -> dict[str, Any]:
    """Writes, loads in a child, deletes. ratio: memory that loading added at its peak, over the weights."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        weights = write_random(Path(folder), shape)
        command = [sys.executable, "-m", "model.bench.loading", "--measure", folder]
        command += ["--threads", str(threads)]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return {
        "shape": asdict(shape),
        "weights_bytes": weights,
        "load_ratio": (report["load_peak_bytes"] - report["before_bytes"]) / weights,
        "process_ratio": report["load_peak_bytes"] / weights,
        **report,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and time of loading a random LLaVA-1.5-7B.")
    parser.add_argument("--layers", type=int, default=32, help="layers of the decoder; 32 are 7B")
    parser.add_argument("--directory", type=Path, default=None, help="where the files go meanwhile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        report = measure(options.measure, options.threads)
    else:
        report = run(BaseShape(layers=options.layers), options.directory, options.threads)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
