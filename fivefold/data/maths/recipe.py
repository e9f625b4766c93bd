"""The name under which `fivefold data run` finds the recipe; nothing heavy is imported for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.data.curate.command import Recipe
from fivefold.data.curate.shard import Shard
from fivefold.data.maths.config import MathsConfig
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated


def _run(shards: Sequence[Shard], config: MathsConfig, out: Path, track: Track | None) -> "Curated":
    from fivefold.data.maths.glm5_math import run_glm5_math

    return run_glm5_math(shards, config, out, track)


GLM5_MATH = Recipe(
    MathsConfig, _run, default_sources=("mpmath-doc", "statsmodels-doc", "sympy-doc")
)
