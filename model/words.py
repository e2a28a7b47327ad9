"""A checkpoint's words: its processor and tokenizer, the chat template around a prompt, and text from ids.

A checkpoint may lack tokenizer and image processor; then requests must bring token ids and pixel values.
Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from model.request import RequestError, Turn

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Texts of so many tokens at most are remembered, and so many of them: some megabytes.
SHORT_TOKENS, SHORT_TEXTS = 4, 1 << 15
PLAIN_TEMPLATE = "USER: {images}{prompt} ASSISTANT:"


def _has(directory: Path, names: Sequence[str]) -> bool:
    return any((directory / name).exists() for name in names)


class Words:
    """image_processor, tokenizer: transformers', None where the checkpoint has none.

    whole: whether transformers' processor of both can be made, which may bring a chat template of its own.
    """

    def __init__(self, directory: Path, image_token_id: int, *, whole: bool) -> None:
        self.image_token_id = image_token_id
        self._short = lru_cache(SHORT_TEXTS)(self._text)
        self.processor: Any = None
        self.tokenizer: Any = None
        self.image_processor: Any = None
        has_processor, has_tokenizer = _has(directory, PROCESSOR_FILES), _has(directory, TOKENIZER_FILES)
        # The Pillow backend: torchvision is no dependency of ours.
        if whole and has_processor and has_tokenizer:
            self.processor = AutoProcessor.from_pretrained(directory, backend="pil")
            self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
            return
        if has_tokenizer:
            self.tokenizer = AutoTokenizer.from_pretrained(directory)
        if has_processor:
            self.image_processor = AutoImageProcessor.from_pretrained(directory, backend="pil")

    @property
    def decode(self) -> Callable[[Sequence[int]], str] | None:
        return None if self.tokenizer is None else self._decode

    def _decode(self, token_ids: Sequence[int]) -> str:
        """Windows of a few tokens come again and again, and transformers takes 30 µs for one."""
        return self._short(tuple(token_ids)) if len(token_ids) <= SHORT_TOKENS else self._text(token_ids)

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @property
    def takes_turns(self) -> bool:
        return self.tokenizer is not None and self._template_of() is not None

    def _template_of(self) -> Any:
        source = self.processor or self.tokenizer
        return getattr(source, "chat_template", None) or self.tokenizer.chat_template

    def prompt_token_ids(self, prompt: str, images: int, history: Sequence[Turn] = ()) -> list[int]:
        """One placeholder an image."""
        if self.tokenizer is None:
            raise RequestError("this checkpoint has no tokenizer: give prompt_token_ids", param="prompt")
        text = self._chat_text(prompt, images, history)
        bos = self.tokenizer.bos_token
        ids = list(self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])
        if ids.count(self.image_token_id) > images:
            placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
            param = "history" if history and placeholder not in prompt else "prompt"
            raise RequestError(f"the {param} must not hold {placeholder}: it stands for a picture", param)
        return ids

    def _chat_text(self, prompt: str, images: int, history: Sequence[Turn]) -> str:
        if self._template_of() is None:
            if history:
                raise RequestError("this checkpoint has no chat template: one turn alone", param="history")
            placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
            return PLAIN_TEMPLATE.format(images=f"{placeholder}\n" * images, prompt=prompt)
        own = images - sum(turn.images for turn in history)
        if own < 0:
            raise RequestError(f"{images} images given, {images - own} are in the history", param="history")
        messages = [_message(turn) for turn in (*history, Turn("user", prompt, own))]
        source = self.processor or self.tokenizer
        try:
            return str(source.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template refuses what it does not like in any way it likes
            param = "history" if history else "prompt"
            raise RequestError(f"the checkpoint's chat template refuses this: {error}", param) from error

    def processed(self, images: Sequence[Any], **options: Any) -> Any:
        """What the checkpoint's image processor makes of RGB pictures, as torch tensors by name."""
        if self.image_processor is None:
            raise RequestError("this checkpoint has no image processor: give pixel_values", param="images")
        return self.image_processor(images=list(images), return_tensors="pt", **options)


def _message(turn: Turn) -> dict[str, Any]:
    content = [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.text}]
    return {"role": turn.role, "content": content}
