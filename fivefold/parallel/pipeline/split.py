"""Which pieces of the model each pipeline stage holds.

The model is the planner's chain (`plan.chain`): embedding, layers, MTP layer, head. A cut is a
list of ranges over it, as `plan.stage_split` makes them, so that what the planner weighs is what
runs. The final norm stands before its first reader: the MTP layer, or else the head.

Where the MTP layer goes is a matter of the cut (GLM-5 report, section 2.4.1). On the stage before
the last it has an embedding of its own beside it, a copy of the first stage's, while the head on
the last stage serves main and MTP losses alike; then every state that the head reads crosses the
edge between the two. With the head on one stage, none of them does.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.plan.flops import head_flops, layer_flops
from fivefold.plan.stage_split import split_evenly

MtpPlacement = Literal["before_last", "last"]
"""The stage that holds the MTP layer: the one before the head's, or the head's."""


@dataclass(frozen=True)
class StagePart:
    """The pieces of one stage and what reaches it."""

    embeds: bool
    """Does it turn ids into the residual stream?"""
    layers: range
    """Layers of the main stack."""
    has_norm: bool
    """Does it apply the final norm?"""
    mtp_depths: int
    """Depths that its MTP layer is unrolled to; 0: it has none."""
    has_head: bool
    """Does it project and take the losses?"""
    is_normed: bool
    """Is the state that reaches it past the final norm?"""
    follows_mtp: bool
    """Does a state of each MTP depth reach it beside the main one?"""

    @property
    def reads_embedding(self) -> bool:
        """Does it hold the embedding, or a copy of it?"""
        return self.embeds or self.mtp_depths > 0

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with."""
        return (
            *(["embed_tokens."] if self.reads_embedding else []),
            *(f"layers.{layer}." for layer in self.layers),
            *(["norm."] if self.has_norm else []),
            *(["mtp."] if self.mtp_depths else []),
            *(["lm_head."] if self.has_head else []),
        )


def mtp_depths(config: ModelConfig) -> int:
    """Return the depths that the MTP layer is unrolled to in training."""
    return config.fivefold.mtp_depths * config.num_nextn_predict_layers


def chain_length(config: ModelConfig) -> int:
    """Count the pieces of the planner's chain."""
    return 2 + config.num_hidden_layers + (mtp_depths(config) > 0)


def piece_work(config: ModelConfig, context_tokens: int) -> list[float]:
    """Return the FLOPs of one token in each piece of the chain, attention dense."""
    depths, layers = mtp_depths(config), config.num_hidden_layers
    one = [layer_flops(config, [i], context_tokens, sparse=False).total for i in range(layers + 1)]
    joined = 4 * config.hidden_size**2
    mtp = [depths * (one[layers] + joined)] if depths else []
    return [0.0, *one[:layers], *mtp, float((1 + depths) * head_flops(config))]


def cut_by_counts(config: ModelConfig, counts: Sequence[int]) -> list[range]:
    """Cut the chain into stages of so many pieces each, embedding and head counted.

    Raises:
        ConfigError: the counts do not add up to the chain.
    """
    length = chain_length(config)
    if sum(counts) != length or min(counts, default=0) < 1:
        raise ConfigError(
            expected=f"positive numbers of pieces a stage that add up to {length} "
            f"(embedding, {config.num_hidden_layers} layers, "
            f"{'MTP layer, ' if mtp_depths(config) else ''}head)",
            found=f"{list(counts)}",
            fix="Change the layout's `pieces`",
        )
    begins = [sum(counts[:stage]) for stage in range(len(counts) + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(begins)]


def cut_by_work(
    config: ModelConfig,
    work: Sequence[float],
    stages: int,
    mtp: MtpPlacement | None = None,
) -> list[range]:
    """Cut the chain into stages of nearly equal work, `work[i]` being that of piece i.

    `mtp` names the stage of the MTP layer; None leaves it to the work.

    Raises:
        ConfigError: more stages than pieces to give them.
    """
    length = chain_length(config)
    assert len(work) == length, f"{len(work)} weights for {length} pieces"
    fixed = 1 if mtp == "before_last" else 2
    if mtp is None or not mtp_depths(config):
        fixed = 0
    if fixed and stages > 1:
        _check_stages(stages - 1, length - fixed)
        head = range(length - fixed, length)
        return [*split_evenly(work[: length - fixed], stages - 1), head]
    _check_stages(stages, length)
    return split_evenly(work, stages)


def stage_parts(config: ModelConfig, cut: Sequence[range]) -> list[StagePart]:
    """Return what each stage of the cut holds.

    Raises:
        ConfigError: a cut between a layer and the one whose selection of keys it shares.
    """
    length, layers = chain_length(config), config.num_hidden_layers
    pieces = [piece for run in cut for piece in run]
    assert pieces == list(range(length)), f"{cut} is not a cut of {length} pieces"
    depths = mtp_depths(config)
    norm = length - 2 if depths else length - 1
    parts: list[StagePart] = []
    for run in cut:
        first = run.start - 1
        if 0 < first < layers and config.has_indexer and config.indexer_type(first) == "shared":
            raise ConfigError(
                expected="a stage to begin with a layer that has an indexer of its own",
                found=f"a cut before layer {first}, which shares the selection of the one below",
                fix="Move the cut to a layer whose `indexer_types` entry is `full`",
            )
        before = parts[-1] if parts else None
        parts.append(
            StagePart(
                embeds=0 in run,
                layers=range(max(run.start - 1, 0), max(min(run.stop - 1, layers), 0)),
                has_norm=norm in run,
                mtp_depths=depths if depths and length - 2 in run else 0,
                has_head=length - 1 in run,
                is_normed=before is not None and (before.has_norm or before.is_normed),
                follows_mtp=before is not None and before.mtp_depths > 0,
            )
        )
    return parts


def _check_stages(stages: int, pieces: int) -> None:
    if stages > pieces:
        raise ConfigError(
            expected=f"at most {pieces} stages for as many pieces",
            found=f"{stages}",
            fix="Use fewer pipeline stages, or a deeper model",
        )
