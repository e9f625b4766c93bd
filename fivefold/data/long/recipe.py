"""The name under which `fivefold data run` finds the recipe; nothing heavy is imported for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.data.curate.command import Recipe
from fivefold.data.curate.shard import Shard
from fivefold.data.long.config import LongConfig
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated


def _run(shards: Sequence[Shard], config: LongConfig, out: Path, track: Track | None) -> "Curated":
    from fivefold.data.long.midtrain_long import run_midtrain_long

    return run_midtrain_long(shards, config, out, track)


MIDTRAIN_LONG = Recipe(LongConfig, _run)
