"""Which pipeline rank holds which stages and parameters, read off the configs alone.

Every rank works it out for itself, before any weight exists.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fivefold.errors import ConfigError
from fivefold.models.config import ModelConfig
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.pipeline.split import (
    StagePart,
    cut_by_counts,
    cut_by_work,
    piece_work,
    stage_parts,
)
from fivefold.plan.make_schedule import placement_of


@dataclass(frozen=True)
class Placement:
    """The stages of a model over the ranks of a pipeline."""

    parts: tuple[StagePart, ...]
    """What each stage holds."""
    rank_of_stage: tuple[int, ...]
    """Where each lives."""

    def stages_of(self, rank: int) -> list[int]:
        """Return the stages of a pipeline rank."""
        return [stage for stage, home in enumerate(self.rank_of_stage) if home == rank]

    def homes(self, name: str) -> list[int]:
        """Return the pipeline ranks that hold a parameter, its owner first."""
        pairs = zip(self.parts, self.rank_of_stage, strict=True)
        return list(dict.fromkeys(r for part, r in pairs if name.startswith(part.prefixes)))

    def holds(self, rank: int, name: str) -> bool:
        """Does a pipeline rank hold the parameter?"""
        return rank in self.homes(name)

    def several(self, names: Iterable[str]) -> list[str]:
        """Return the parameters that more than one stage holds."""
        return [n for n in names if sum(n.startswith(part.prefixes) for part in self.parts) > 1]


def place_stages(model: ModelConfig, parallel: ParallelConfig) -> Placement:
    """Cut the model by the counts of `parallel`, or into equal work, and place the stages.

    Raises:
        ConfigError: the counts do not fit, or there are more stages than pieces.
    """
    ranks = placement_of(parallel.schedule, parallel.pp, parallel.chunks)
    if parallel.pieces is None:
        work = piece_work(model, model.max_position_embeddings)
        cut = cut_by_work(model, work, len(ranks), parallel.mtp_stage)
    elif len(parallel.pieces) == len(ranks):
        cut = cut_by_counts(model, parallel.pieces)
    else:
        raise ConfigError(
            expected=f"`pieces` for {len(ranks)} stages",
            found=str(list(parallel.pieces)),
            fix="Give one number a stage, or leave `pieces` out",
        )
    return Placement(tuple(stage_parts(model, cut)), tuple(ranks))
