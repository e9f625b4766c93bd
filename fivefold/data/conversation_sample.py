"""A conversation as the samples that training sees, with an account of what it does not learn.

`interleaved` thinking makes one sample of each stretch between user messages, `preserved` one of
the whole conversation (`text.template`). Excluded tokens are told by reason: a reason's
tokens are those that it would exclude by itself.

Surprise: a token that two reasons exclude belongs to both, so that counts by reason may sum to more
than the tokens excluded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fivefold.data.conversation_config import Thinking
from fivefold.data.conversation_file import TrainingConversation
from fivefold.text.conversation import Message
from fivefold.text.template import Rendered, render, split_forks
from fivefold.text.tokenizer import Tokenizer
from fivefold.text.tool import Tool

WHOLE_TURN = "turn without loss"
"""Reason of the tokens of a turn that says `loss: false`."""


@dataclass(frozen=True)
class TrainingSample:
    """One sequence of n tokens."""

    ids: np.ndarray
    """int32 [n]."""
    is_learned: np.ndarray
    """Is the token a label? bool [n]."""
    excluded: dict[str, np.ndarray]
    """For each reason, the assistant's tokens that are no labels because of it: bool [n]."""

    @property
    def learned_tokens(self) -> int:
        """Number of labels; place 0 has no prediction and is never one."""
        return int(self.is_learned[1:].sum())


def conversation_to_samples(
    conversation: TrainingConversation, tokenizer: Tokenizer, thinking: Thinking
) -> list[TrainingSample]:
    """Return the samples that together learn each assistant turn once."""
    if thinking == "preserved":
        forks, clears = [conversation.messages], False
    else:
        forks, clears = split_forks(conversation.messages), True
    samples = []
    known = 0
    for fork in forks:
        samples.append(_make_sample(fork, known, conversation.tools, tokenizer, clears))
        known = len(fork)
    return samples


def _make_sample(
    fork: tuple[Message, ...],
    known: int,
    tools: tuple[Tool, ...],
    tokenizer: Tokenizer,
    clear_thinking: bool,
) -> TrainingSample:
    """Render a fork of which the first `known` messages are learned elsewhere."""

    def mask(messages: tuple[Message, ...]) -> Rendered:
        return render(messages, tokenizer, tools=tools, clear_thinking=clear_thinking, close=True)

    rendered = mask(fork)
    is_learned = np.array(rendered.loss_mask)
    excluded = {}
    reasons = sorted(set(_reasons(fork[known:])))
    if reasons:
        # Ids do not depend on what is excluded, so that masks of one fork compare.
        everything = np.array(mask((*fork[:known], *_keep(fork[known:], ()))).loss_mask)
        for reason in reasons:
            alone = mask((*fork[:known], *_keep(fork[known:], (reason,))))
            excluded[reason] = everything & ~np.array(alone.loss_mask)
    return TrainingSample(np.array(rendered.ids, dtype=np.int32), is_learned, excluded)


def _reasons(messages: tuple[Message, ...]) -> Iterator[str]:
    for message in messages:
        if message.role == "assistant" and not message.loss:
            yield WHOLE_TURN
        yield from (exclusion.reason for exclusion in message.exclusions)


def _keep(messages: tuple[Message, ...], reasons: tuple[str, ...]) -> Iterator[Message]:
    """Yield the messages with the exclusions of these reasons alone."""
    for message in messages:
        kept = tuple(entry for entry in message.exclusions if entry.reason in reasons)
        loss = message.loss or WHOLE_TURN not in reasons
        yield message.model_copy(update={"exclusions": kept, "loss": loss})
