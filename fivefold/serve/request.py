"""One request: what a caller asks for, and what the engine knows of it so far.

Token ids only. Stop strings belong to whoever has the tokenizer: `Request.stops` is asked after
each token with all output ids. Two integers carry the whole accounting: `computed` tokens have
their keys in the pool, and `known + in_flight` tokens exist; the difference is what remains to do,
be it a prompt, one decoded token or a draft to verify.

Surprise: `computed` moves when a step is planned, not when it has run, so that the next step can be
planned meanwhile; `in_flight` counts the token that a running step is about to add.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from fivefold.errors import FivefoldError
from fivefold.serve.prefix_tree import Node

FinishReason = Literal["stop", "length", "abort"]

_MOST_BIAS = 1e30
"""Above any logit by far, and finite in fp32 even after the division by a low temperature."""


class RequestError(FivefoldError, ValueError):
    """A request that this model or engine cannot answer."""


class QueueFullError(FivefoldError, RuntimeError):
    """More requests than the engine is willing to hold."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are chosen and when they end."""

    max_new_tokens: int = 128
    """Tokens to add at most; 0 scores the prompt alone."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the best token, and anything else below 1e-6 counts as that."""
    top_k: int = 0
    """Keep this many best tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of best tokens with at least this probability."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the best token's probability."""
    seed: int | None = None
    """Seed of the draws; None: the engine gives each request its own."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the output, beside the model's own; the id itself is returned."""
    ignore_eos: bool = False
    """Go on past the model's own stop ids."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, amount added to its logit before anything else)."""
    top_logprobs: int = 0
    """Most likely alternatives to report at each output token, by raw probability."""
    prompt_logprobs_begin: int | None = None
    """First prompt position to score (0: all but the first token, which has none); None: none."""
    returns_routing: bool = False
    """Report the experts that each computed token went through."""

    def check(self, vocab_size: int) -> None:
        """Refuse what has no meaning.

        Raises:
            RequestError: a setting out of its range, or an id that the model does not have.
        """
        ranges = [
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number of 0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("top_logprobs", 0 <= self.top_logprobs <= vocab_size, f"0 to {vocab_size}"),
            ("prompt_logprobs_begin", (self.prompt_logprobs_begin or 0) >= 0, "0 or more"),
            (
                "logit_bias",
                all(abs(by) <= _MOST_BIAS for _, by in self.logit_bias),
                f"from {-_MOST_BIAS:g} to {_MOST_BIAS:g}",
            ),
        ]
        for name, holds, expected in ranges:
            if not holds:
                raise RequestError(
                    expected=f"`{name}` {expected}",
                    found=repr(getattr(self, name)),
                    fix="Correct the sampling parameters",
                )
        check_ids([*self.stop_ids, *(token for token, _ in self.logit_bias)], vocab_size)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that the model does not have.

    Raises:
        RequestError: the first such id, with its place.
    """
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise RequestError(
                expected=f"token ids from 0 to {vocab_size - 1}",
                found=f"{token!r} at place {place}",
                fix="Encode the text with the tokenizer of the served model",
            )


def check_prompt(prompt: Sequence[int], room: int, vocab_size: int) -> None:
    """Refuse a prompt that is empty, longer than `room` tokens, or of other ids.

    Raises:
        RequestError: with the numbers.
    """
    if not 0 < len(prompt) <= room:
        raise RequestError(
            expected=f"a prompt of 1 to {room} tokens",
            found=f"{len(prompt)}",
            fix="Shorten the prompt" if prompt else "Give at least one token",
        )
    check_ids(prompt, vocab_size)


class TokenLogprob(NamedTuple):
    """How likely an output token was."""

    sampled: float
    """Under the distribution that it was drawn from: bias, temperature and truncation included.
    0 for greedy choice, which is certain."""
    raw: float
    """Under the model: softmax of the unchanged logits at temperature 1."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, raw log-probability) of the most likely alternatives, best first."""


class VersionSpan(NamedTuple):
    """Output tokens `begin` to `end` come from the weights of `version`."""

    begin: int
    end: int
    version: int


class DraftSeed(NamedTuple):
    """The first draft after the last token, and the MTP state that predicts the one after it."""

    token: int
    state_D: Tensor


@dataclass(eq=False)
class Request:
    """A request in the engine. Fields after `on_token` are the engine's."""

    rid: str
    """Name, unique among the requests in the engine."""
    prompt: tuple[int, ...]
    """Token ids to continue."""
    params: SamplingParams
    """How to continue."""
    stops: Callable[[Sequence[int]], bool] | None = None
    """Does the output end here? Asked with all output ids after each token: stop strings."""
    on_token: Callable[["Request", int], None] | None = None
    """Told of every new output token, in order, by the thread that steps."""
    on_finish: Callable[["Request"], None] | None = None
    """Told once, when `finish` is set."""
    priority: int = 0
    """Higher ones leave the queue first."""
    salt: str = ""
    """Only requests of the same salt share prefixes."""

    arrival: int = 0
    seed: int = 0
    limit: int = 0
    """Output tokens at most: `max_new_tokens`, or what the context has room for."""
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    in_flight: int = 0
    blocks: list[int] = field(default_factory=list)
    row: int = -1
    """Row of the block table while running, else -1."""
    kept_node: Node | None = None
    """Node of the prefix tree that ends the shared part of `blocks`."""
    kept_blocks: int = 0
    """Leading blocks that the prefix tree owns."""
    kv_version: int = -1
    """Weights that filled the blocks; -1 once they are mixed."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: dict[int, float] = field(default_factory=dict)
    versions: list[VersionSpan] = field(default_factory=list)
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix tree when the request was first admitted."""
    was_admitted: bool = False
    is_unpublished: bool = True
    """Are the blocks of the prompt still its own?"""
    preemptions: int = 0
    routing: Tensor | None = None
    """Experts of each position, int16 of (positions, MoE layers, A)."""
    finish: FinishReason | None = None
    stopped_by: int | None = None
    """The stop id that ended the output, if one did."""
    drafted: int = 0
    """Draft tokens verified so far."""
    accepted: int = 0
    """Those of them that the model would have drawn itself."""
    draft_limit: int = 0
    """Draft tokens to try at a time."""
    draft_seed: DraftSeed | None = None
    """Where the next drafts begin; None: nowhere yet."""

    @property
    def output(self) -> list[int]:
        """Ids added so far, the stop id included."""
        return self.tokens[len(self.prompt) :]

    @property
    def remaining(self) -> int:
        """Tokens whose keys are still to be computed before the next one can be chosen."""
        return len(self.tokens) + self.in_flight - self.computed

    @property
    def is_closing(self) -> bool:
        """Is the last token that it may add known or in flight?"""
        return len(self.tokens) + self.in_flight - len(self.prompt) >= self.limit

    @property
    def wanted_drafts(self) -> int:
        """Drafts that could be of use: the token after them is drawn too."""
        if self.draft_seed is None or self.in_flight:
            return 0
        return max(min(self.draft_limit, self.limit - (len(self.tokens) - len(self.prompt)) - 1), 0)

    @property
    def scored_tokens(self) -> int:
        """Prompt tokens that are to be scored."""
        if self.params.prompt_logprobs_begin is None:
            return 0
        return len(self.prompt) - max(self.params.prompt_logprobs_begin, 1)

    @property
    def scores_prompt(self) -> bool:
        """Are log-probabilities of prompt tokens wanted?"""
        return self.params.prompt_logprobs_begin is not None

    def add_version(self, version: int) -> None:
        """Note that the newest output token comes from these weights."""
        end = len(self.tokens) - len(self.prompt)
        if self.versions and self.versions[-1].version == version:
            self.versions[-1] = self.versions[-1]._replace(end=end)
        else:
            self.versions.append(VersionSpan(end - 1, end, version))

    def prompt_scores(self) -> list[float | None]:
        """Return the log-probability of each prompt token from `prompt_logprobs_begin` on.

        Position 0 has none. Raw: temperature 1, nothing truncated.
        """
        begin = self.params.prompt_logprobs_begin or 0
        return [self.prompt_logprobs.get(place) for place in range(begin, len(self.prompt))]
