"""Builds tiny worlds (base + twig + reference + prompts) and drives an engine round by round.

`drive` asserts the contract of every request on every run: exactly one terminal output, tokens and text of
the rounds joining to the result, and an empty cache when the engine is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from model.engine import Engine, EngineConfig
from model.request import Request, Result, SamplingParams, StepOutput
from tests.model.reference import Reference
from tests.model.tiny import Edit, Shape, TwigShape, build_tokenizer, twig_tensors, write_base, write_twig

IMAGE = "image"
MAX_ROUNDS = 2000


@dataclass(frozen=True)
class Prompt:
    """ids: placeholders expanded. short_ids: one placeholder an image. pixels: [images, 3, H, W] or None."""

    ids: list[int]
    short_ids: list[int]
    pixels: Tensor | None

    @property
    def images(self) -> int:
        return 0 if self.pixels is None else len(self.pixels)


@dataclass
class World:
    directory: Path
    shape: Shape
    twig: TwigShape
    vlm: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast = field(default_factory=build_tokenizer)

    @classmethod
    def create(
        cls,
        directory: Path,
        shape: Shape,
        twig: TwigShape,
        *,
        twig_noise: float = 0.0,
        edit: Edit | None = None,
    ) -> World:
        vlm = write_base(directory / "base", shape, edit)
        world = cls(directory, shape, twig, vlm)
        write_twig(world.twig_path, vlm, twig, tensors=twig_tensors(vlm, twig, noise=twig_noise))
        return world

    @property
    def base_path(self) -> Path:
        return self.directory / "base"

    @property
    def twig_path(self) -> Path:
        return self.directory / "twig"

    def retwig(self, name: str, twig: TwigShape) -> World:
        """The same base under another twig configuration."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        (path / "base").symlink_to(self.base_path)
        world = World(path, self.shape, twig, self.vlm, self.tokenizer)
        write_twig(world.twig_path, self.vlm, twig)
        return world

    def reference(self) -> Reference:
        return Reference(self.base_path, self.twig_path, self.twig)

    def engine(self, *, twig: bool = True, dtype: str = "float32", **config: Any) -> Engine:
        settings = EngineConfig(**({"max_batch": 8, "governor": False} | config))
        return Engine.from_pretrained(
            self.base_path, self.twig_path if twig else None, device="cpu", dtype=dtype, config=settings
        )

    def prompt(self, seed: int, *parts: int | str) -> Prompt:
        """parts: the length of a run of random text tokens, or IMAGE."""
        draw = torch.Generator().manual_seed(seed)
        image, first_ordinary = self.vlm.config.image_token_id, 5
        ids, short, pixels = [self.tokenizer.bos_token_id], [self.tokenizer.bos_token_id], []
        for part in parts:
            if part == IMAGE:
                ids += [image] * self.shape.visual_tokens
                short.append(image)
                pixels.append(torch.randn(3, 8 * self.shape.grid, 8 * self.shape.grid, generator=draw))
            else:
                text = torch.randint(
                    first_ordinary, len(self.tokenizer), (int(part),), generator=draw
                ).tolist()
                ids, short = ids + text, short + text
        return Prompt(ids, short, torch.stack(pixels) if pixels else None)

    def generate(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """What transformers answers, greedily."""
        ids = torch.tensor([prompt.ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if prompt.pixels is not None:
            inputs["pixel_values"] = prompt.pixels
        output = self.vlm.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return output[0, ids.shape[1] :].tolist()


def ask(
    prompt: Prompt,
    name: str = "r",
    *,
    max_tokens: int = 16,
    retained: int | None = None,
    speculation: bool = True,
    resume: Iterable[int] = (),
    **sampling: Any,
) -> Request:
    return Request(
        prompt_token_ids=prompt.short_ids,
        pixel_values=prompt.pixels,
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),
        retained_tokens=retained,
        speculation=speculation,
        request_id=name,
        resume_token_ids=tuple(resume),
    )


@dataclass
class Trace:
    """All outputs of one request, in order."""

    request: Request
    outputs: list[StepOutput] = field(default_factory=list)

    @property
    def result(self) -> Result:
        assert self.outputs, f"{self.request.request_id} never left the engine"
        result = self.outputs[-1].result
        assert result is not None, f"{self.request.request_id} never left the engine"
        return result

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def drafted(self) -> list[bool]:
        return [flag for output in self.outputs for flag in output.drafted]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    def check(self) -> None:
        assert [output.result is not None for output in self.outputs].count(True) == 1
        result = self.result
        assert result.request_id == self.request.request_id
        resumed = list(self.request.resume_token_ids)
        if result.finish_reason != "error":
            assert resumed + self.token_ids == result.token_ids
            assert result.text.endswith(self.text)
            assert resumed or self.text == result.text
        for output in self.outputs:
            assert len(output.drafted) == len(output.pieces) == len(output.token_ids)
            assert "".join(output.pieces) == (output.text if output.token_ids else "")
        assert self.drafted.count(True) == result.accepted_tokens <= result.draft_tokens
        assert sum(result.accepted_per_position) == result.accepted_tokens


def drive(
    engine: Engine,
    arrivals: Mapping[int, list[Request]] | list[Request],
    *,
    before_round: Callable[[int, dict[str, Trace]], None] = lambda _index, _traces: None,
) -> dict[str, Trace]:
    """Runs to idle. arrivals: round -> the requests that are added before it (a list: all before round 0)."""
    waiting = {0: arrivals} if isinstance(arrivals, list) else dict(arrivals)
    traces: dict[str, Trace] = {}
    for index in range(MAX_ROUNDS):
        for request in waiting.pop(index, []):
            traces[str(request.request_id)] = Trace(request)
            engine.add(request)
        before_round(index, traces)
        if engine.has_work():
            for output in engine.step():
                traces[output.request_id].outputs.append(output)
        elif not waiting:
            break
    else:
        raise AssertionError(f"still working after {MAX_ROUNDS} rounds")
    engine.check_integrity()
    for trace in traces.values():
        trace.check()
    return traces


def run(engine: Engine, *requests: Request) -> list[Result]:
    traces = drive(engine, list(requests))
    return [traces[str(request.request_id)].result for request in requests]
