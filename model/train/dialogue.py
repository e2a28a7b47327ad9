"""A conversation as the base is going to read it: its own chat template, and which tokens are answers.

Invariant: up to the first answer the tokens are those of the prompt that would ask for it, and every answer
ends with a token that ends it when it is generated, put there where the template has none. Text becomes
tokens in one piece, so that none is split otherwise than in inference. Knows words, not pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.train.conversations import Conversation, DataError
from model.words import PLAIN_TEMPLATE, Words


@dataclass(frozen=True)
class Dialogue:
    """ids: one placeholder an image. answers: [first, end) of the ids of each answer."""

    ids: list[int]
    answers: list[tuple[int, int]]


class Speaker:
    """words: the base's. eos: the tokens that end an answer."""

    def __init__(self, words: Words, eos: frozenset[int]) -> None:
        if words.tokenizer is None:
            raise ValueError("the base has no tokenizer: its twig cannot be trained on text")
        if not words.tokenizer.is_fast:
            raise ValueError("the base's tokenizer does not tell where its tokens stand in the text")
        if not eos:
            raise ValueError("the base has no token that ends an answer")
        self.words, self.tokenizer = words, words.tokenizer
        self.eos = {str(self.tokenizer.convert_ids_to_tokens(token)) for token in sorted(eos)}
        # The one that the tokenizer itself calls so, where a base has several.
        own = self.tokenizer.eos_token
        self.end = own if own in self.eos else min(self.eos)

    def dialogue(self, conversation: Conversation) -> Dialogue:
        text, spans = self._text(conversation)
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(
            text, add_special_tokens=not (bos and text.startswith(bos)), return_offsets_mapping=True
        )
        offsets = encoded["offset_mapping"]
        answers = [_within(offsets, *span) for span in spans]
        for number, (first, end) in enumerate(answers):
            if first >= end:
                raise DataError(f"{conversation.name}: conversations[{2 * number + 1}].value has no tokens")
        return Dialogue(list(encoded["input_ids"]), answers)

    def _text(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation, and where in it the answers stand, the ends of them included."""
        turns, images = conversation.turns, int(conversation.picture is not None)
        whole = self._told(turns, images)
        text, spans, read = "", [], 0
        for number in range(len(turns)):
            prompt = self._told(turns[:number], images, turns[number][0])
            told = self._told(turns[: number + 1], images)
            if not (whole.startswith(told) and told.startswith(prompt)):
                raise ValueError("the base's chat template writes what was said otherwise once more is said")
            answer = told[len(prompt) :].rstrip()
            if not answer.endswith(tuple(self.eos)):
                answer += self.end
            text += whole[read : len(prompt)]
            spans.append((len(text), len(text) + len(answer)))
            text, read = text + answer, len(told)
        return text, spans

    def _told(self, turns: Sequence[tuple[str, str]], images: int, asking: str | None = None) -> str:
        """The turns, and if given a question that waits for its answer."""
        source = self.words.processor or self.tokenizer
        questions = [question for question, _ in turns] + ([] if asking is None else [asking])
        answers = [answer for _, answer in turns]
        if not (getattr(source, "chat_template", None) or self.tokenizer.chat_template):
            return self._plain(questions, answers, images)
        messages = []
        for number, question in enumerate(questions):
            pictures = [{"type": "image"}] * (images if number == 0 else 0)
            messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
            if number < len(answers):
                told = [{"type": "text", "text": answers[number]}]
                messages.append({"role": "assistant", "content": told})
        asks = asking is not None
        return str(source.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False))

    def _plain(self, questions: Sequence[str], answers: Sequence[str], images: int) -> str:
        placeholder = self.tokenizer.convert_ids_to_tokens(self.words.image_token_id)
        text = ""
        for number, question in enumerate(questions):
            pictures = f"{placeholder}\n" * (images if number == 0 else 0)
            text += PLAIN_TEMPLATE.format(images=pictures, prompt=question)
            if number < len(answers):
                text += f" {answers[number]}{self.end}"
        return text


def _within(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens of the characters [start, end)."""
    inside = [n for n, (first, last) in enumerate(offsets) if first >= start and last <= end and last > first]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
