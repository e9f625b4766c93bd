"""Answers to the same questions along fine-tuning, for the report."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fivefold.data.conversation_file import choose_split, conversation_files, read_conversations
from fivefold.models.generate import generate
from fivefold.models.transformer import Transformer
from fivefold.text.conversation import Message
from fivefold.text.template import render_prompt
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.sample import SAMPLING
from fivefold.train.sft_config import SftConfig

_SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class Question:
    """A prompt that the model answers again and again."""

    shown: str
    """The text of its last message."""
    ids: list[int]
    """The rendered prompt, up to where the answer begins."""


def choose_questions(
    config: SftConfig, conversations: Path, tokenizer: Tokenizer, model: Transformer
) -> list[Question]:
    """Return the configured questions, else those of the first held-out conversations.

    What leaves no room for an answer within the model's context is passed over.
    """
    if not config.sample_count:
        return []
    room = model.config.max_position_embeddings - config.sample_tokens
    wanted = len(config.sample_prompts) or config.sample_conversations
    found: list[Question] = []
    for question in _questions(config, conversations, tokenizer):
        if len(found) == wanted:
            break
        if len(question.ids) <= room:
            found.append(question)
    return found


def _questions(config: SftConfig, conversations: Path, tokenizer: Tokenizer) -> Iterator[Question]:
    if config.sample_prompts:
        for prompt in config.sample_prompts:
            yield Question(prompt, render_prompt([Message(role="user", content=prompt)], tokenizer))
        return
    split = config.conversations
    for path in conversation_files(conversations):
        for held in read_conversations(path):
            if choose_split(held, split.heldout_share, split.heldout_seed) != "heldout":
                continue
            prompt = held.prompt
            thinks = held.messages[len(prompt)].reasoning_content is not None
            ids = render_prompt(prompt, tokenizer, tools=held.tools, enable_thinking=thinks)
            shown = prompt[-1].content if prompt else "(nothing)"
            yield Question(shown[:_SHOWN_CHARACTERS], ids)


def make_answerer(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    config: SftConfig,
    seed: int,
) -> Callable[[int, float], list[dict[str, str]]]:
    """Return the function that answers the questions, always with the same draws."""

    def answer(step: int, bits_per_byte: float) -> list[dict[str, str]]:
        samples = []
        for question in questions:
            ids = torch.tensor([question.ids], device=model.lm_head.weight.device)
            generator = torch.Generator(ids.device).manual_seed(seed)
            new = generate(
                model, ids, config.sample_tokens, SAMPLING, generator, tokenizer.stop_ids
            )
            label = f"step {step}, {bits_per_byte:.2f} bits/byte"
            text = tokenizer.decode(new[0], skip_special=True)
            samples.append({"label": label, "prompt": question.shown + "\n", "text": text})
        return samples

    return answer
