"""The scenes demo's language: a word-level tokenizer and a small T5 encoder that reads captions.

The encoder first learns to read, and then stays as it is, as in PixArt: each word of a thing is
asked for that thing's size, colour and shape and for the place it has in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.demo.scenes import LENGTH, OPPOSITE, QUALITIES, SIDES, Scene, Thing, scenes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

WIDTH = 96
EXAMPLE_SEED, EXAMPLES = 3_000_017, 64
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
QUESTIONS = (*QUALITIES, tuple(SIDES))
_UNASKED = -100  # what cross_entropy passes over
_WORDS = ("a", *(word for answers in QUESTIONS for answer in answers for word in answer.split()))


def tokenizer() -> PreTrainedTokenizerFast:
    """Its config lists examples, so that whoever calibrates the pipeline knows what to ask it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((PAD, END, UNKNOWN, *_WORDS)))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    end = (END, vocabulary[END])
    words.post_processor = processors.TemplateProcessing(f"$A {END}", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        prompts=[scene.caption for scene in scenes(EXAMPLE_SEED, range(EXAMPLES))],
    )


def encoder(words: int) -> T5EncoderModel:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=words,
        d_model=WIDTH,
        d_kv=24,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def tokens(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Numbers of words, filled up with padding, which is number 0."""  # (N, LENGTH)
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=LENGTH, return_tensors="pt"
    ).input_ids
    return ids


class Reader(nn.Module):
    """The encoder under examination."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = encoder(words)
        self.answer = nn.Linear(WIDTH, sum(map(len, QUESTIONS)))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """For every word the logits of each question's answers."""  # (N, LENGTH, answers)
        hidden = self.encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state
        return list(self.answer(hidden).split([len(answers) for answers in QUESTIONS], dim=-1))


def loss(model: nn.Module, ids: Tensor, scenes: Sequence[Scene]) -> Tensor:
    right = answers(scenes)
    guesses = model(ids)
    losses = [
        F.cross_entropy(guess.flatten(0, 1).float(), right[..., i].flatten(), ignore_index=_UNASKED)
        for i, guess in enumerate(guesses)
    ]
    return torch.stack(losses).sum()


def answers(scenes: Sequence[Scene]) -> Tensor:
    """What each word should answer; words that belong to no thing are not asked."""
    right = torch.full((len(scenes), LENGTH, len(QUESTIONS)), _UNASKED)
    for row, scene in zip(right, scenes, strict=True):
        second = 4 + len(scene.relation.split())
        row[:4] = _about(scene.first, scene.relation)
        row[second : second + 4] = _about(scene.second, OPPOSITE[scene.relation])
    return right  # (N, LENGTH, 4)


def _about(thing: Thing, side: str) -> Tensor:
    values = (thing.size, thing.colour, thing.shape, side)
    return torch.tensor([q.index(value) for q, value in zip(QUESTIONS, values, strict=True)])
