"""Makes the embedded model's tokenizer and processor: byte-level BPE, so that any text has tokens.

Whole words of the scenes world become one token each, which is what keeps answers short.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from model.scenes.compose import IMAGE_PX, PATCH_PX, TRAIN_SEEDS, random_scene
from model.scenes.language import turns
from model.scenes.words import NOUNS, plural

VOCABULARY = 1152
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _corpus(scenes: int) -> list[str]:
    lines = []
    for seed in range(scenes):
        rng = np.random.default_rng(TRAIN_SEEDS + seed)
        asked = turns(random_scene(rng), rng, 6)
        lines += [f"USER: \n{turn.prompt} ASSISTANT: {turn.answer}" for turn in asked]
    for noun in NOUNS:  # every word often enough to be one token, with a space before it
        lines += [f"a {noun}. {plural(noun)}"] * 40
    return lines


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # The space that stands before an answer's first word is the template's, not the answer's.
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    special = ["<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(_corpus(4000), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>"], padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The whole picture stretched to the tower's square: nothing of a user's picture is cropped away."""
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    pictures = CLIPImageProcessorPil(size=side, do_center_crop=False, crop_size=side)
    return LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH_PX, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def save_processor(out: Path) -> LlavaProcessor:
    processor = make_processor(make_tokenizer())
    processor.save_pretrained(out)
    return processor
