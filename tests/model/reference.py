"""The method of design section 1, written as plainly as it can be: no cache, no batch, no code of the engine.

Every token recomputes everything from the prompt with transformers' own decoder layers. It is slow and it is
the specification: kept indices, tokens and the accounting of drafts must equal the engine's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.model.tiny import TwigShape


def kept_count(layers: int, tokens: int, retained: float, fork_layer: int, drop_layer: int) -> int:
    return math.ceil((layers * retained - fork_layer * tokens) / (drop_layer - fork_layer))


@dataclass
class Answer:
    """indices: the visual tokens kept, ascending. draft_tokens, accepted_tokens: 0 without speculation."""

    token_ids: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Reference:
    """One base and one twig. hidden states are [1, tokens, hidden] throughout.

    pixels: what the family's tower takes, for LLaVA [images, 3, height, width]; positions: [..., tokens].
    """

    vlm_class: Any = LlavaForConditionalGeneration
    layer_class: Any = LlamaDecoderLayer

    def __init__(self, base: Path, twig_directory: Path, twig: TwigShape) -> None:
        self.vlm = self.vlm_class.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.twig = twig
        self.language = self.vlm.model.language_model
        self.eos = self.vlm.generation_config.eos_token_id
        tensors = load_file(twig_directory / "model.safetensors")
        self.twig_head, self.twig_norm = tensors["lm_head.weight"], tensors["model.norm.weight"]
        self.twig_layers = [self._layer(tensors, index) for index in range(twig.twig_layers)]

    def _layer(self, tensors: dict[str, Tensor], index: int) -> Any:
        prefix = f"model.layers.{index}."
        layer = self.layer_class(self.language.config, index).eval()
        layer.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        return layer

    def _features(self, pixels: Any) -> Any:
        return self.vlm.get_image_features(pixel_values=pixels).pooler_output

    def _positions(self, ids: list[int], _prompt_length: int, _pixels: Any) -> Tensor:
        return torch.arange(len(ids))

    def _rotary(self, hidden: Tensor, positions: Tensor) -> Any:
        return self.language.rotary_emb(hidden, positions[None])

    def _embed(self, ids: list[int], prompt_length: int, pixels: Any) -> Tensor:
        hidden = self.vlm.get_input_embeddings()(torch.tensor([ids]))
        if pixels is not None:
            visual = torch.tensor(self._visual(ids[:prompt_length]))
            hidden[0, visual] = torch.cat(list(self._features(pixels)))
        return hidden

    def _visual(self, prompt: list[int]) -> list[int]:
        return [index for index, token in enumerate(prompt) if token == self.vlm.config.image_token_id]

    def _through(self, layers: list[Any], hidden: Tensor, positions: Tensor) -> Tensor:
        rotary = self._rotary(hidden, positions)
        for layer in layers:
            hidden = layer(hidden, attention_mask=self._causal(hidden), position_embeddings=rotary)
        return hidden

    def _causal(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        return torch.full((length, length), float("-inf")).triu(1)[None, None]

    def scores(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """[tokens]: what the last token attends to in the last twig layer, averaged over the heads."""
        last = self.twig_layers[-1]
        hidden = last.input_layernorm(self._through(self.twig_layers[:-1], hidden, positions))
        rotary = self._rotary(hidden, positions)
        # [1, heads, tokens, tokens]
        probabilities = last.self_attn(
            hidden_states=hidden, position_embeddings=rotary, attention_mask=self._causal(hidden)
        )[1]
        return probabilities[0, :, -1].mean(0)

    @torch.no_grad()
    def kept(self, prompt: list[int], pixels: Any, retained: int | None) -> list[int] | None:
        """Ascending indices into the visual tokens; None where pruning is off."""
        visual = self._visual(prompt)
        if retained is None or retained == len(visual):
            return None
        count = kept_count(
            len(self.language.layers), len(visual), retained, self.twig.fork_layer, self.twig.drop_layer
        )
        trunk = self._trunk(prompt, len(prompt), pixels)
        positions = self._positions(prompt, len(prompt), pixels)
        ranked = self.scores(trunk, positions)[visual].argsort(descending=True)
        return sorted(ranked[:count].tolist())

    def _trunk(self, ids: list[int], prompt_length: int, pixels: Any) -> Tensor:
        layers = list(self.language.layers[: self.twig.fork_layer])
        positions = self._positions(ids, prompt_length, pixels)
        return self._through(layers, self._embed(ids, prompt_length, pixels), positions)

    @torch.no_grad()
    def next_logits(
        self, prompt: list[int], output: list[int], pixels: Any, kept: list[int] | None
    ) -> Tensor:
        """[vocabulary], of the base; its layers K..F-1 see `kept`, F..L-1 text (None: see everything)."""
        ids = prompt + output
        visual = self._visual(prompt)
        positions = self._positions(ids, len(prompt), pixels)
        hidden = self._trunk(ids, len(prompt), pixels)
        fork, drop = self.twig.fork_layer, self.twig.drop_layer
        if kept is not None:
            # The last prompt token asks for the first answer token: it rides through all layers as text does.
            pruned = set(visual) - {len(prompt) - 1}
            text = [index for index in range(len(ids)) if index not in pruned]
            middle = sorted({*text, *(visual[index] for index in kept)})
            hidden = self._through(
                list(self.language.layers[fork:drop]), hidden[:, middle], positions[..., middle]
            )
            hidden = hidden[:, [middle.index(index) for index in text]]
            hidden = self._through(list(self.language.layers[drop:]), hidden, positions[..., text])
        else:
            hidden = self._through(list(self.language.layers[fork:]), hidden, positions)
        return self.vlm.lm_head(self.language.norm(hidden[0, -1]))

    def next_token(self, prompt: list[int], output: list[int], pixels: Any, kept: list[int] | None) -> int:
        """Greedy."""
        return int(self.next_logits(prompt, output, pixels, kept).argmax())

    @torch.no_grad()
    def draft_logits(self, prompt: list[int], output: list[int], pixels: Any) -> Tensor:
        """[rows of the twig's head]"""
        ids = prompt + output
        hidden = self._trunk(ids, len(prompt), pixels)
        positions = self._positions(ids, len(prompt), pixels)
        hidden = self._through(self.twig_layers, hidden, positions)[0, -1]
        variance = hidden.pow(2).mean() + self.language.config.rms_norm_eps
        return self.twig_head @ (hidden * variance.rsqrt() * self.twig_norm)

    def draft_token(self, prompt: list[int], output: list[int], pixels: Any) -> tuple[int, float]:
        """The twig's greedy next token and its raw probability."""
        probabilities = self.draft_logits(prompt, output, pixels).softmax(-1)
        return int(probabilities.argmax()), float(probabilities.max())

    def _draft(self, prompt: list[int], output: list[int], pixels: Any, limit: int) -> list[int]:
        drafts: list[int] = []
        while len(drafts) < limit:
            token, probability = self.draft_token(prompt, output + drafts, pixels)
            drafts.append(token)
            if token == self.eos or probability < self.twig.draft_threshold:
                break
        return drafts

    def generate(
        self,
        prompt: list[int],
        pixels: Any,
        *,
        retained: int | None,
        max_tokens: int,
        speculation: bool = False,
    ) -> Answer:
        """prompt has its image placeholders expanded.

        The first round drafts as all others do: the twig's last prompt row gives draft 0.
        """
        kept = self.kept(prompt, pixels, retained)
        answer = Answer(indices=list(range(len(self._visual(prompt)))) if kept is None else kept)
        output = answer.token_ids
        while len(output) < max_tokens and output[-1:] != [self.eos]:
            limit = min(self.twig.draft_tokens, max_tokens - len(output) - 1) if speculation else 0
            drafts = self._draft(prompt, output, pixels, limit)
            answer.draft_tokens += len(drafts)
            for draft in [*drafts, None]:
                output.append(self.next_token(prompt, output, pixels, kept))
                if output[-1] != draft:
                    break
                answer.accepted_tokens += 1
                if draft == self.eos:
                    break
        return answer
