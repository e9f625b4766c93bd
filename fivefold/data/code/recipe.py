"""The name under which `fivefold data run` finds the recipe; nothing heavy is imported for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.data.code.config import CodeConfig
from fivefold.data.code.repository import CodeShard, find_repositories
from fivefold.data.curate.command import Recipe
from fivefold.data.source import PYTHON_STDLIB
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated


def _run(
    shards: Sequence[CodeShard], config: CodeConfig, out: Path, track: Track | None
) -> "Curated":
    from fivefold.data.code.glm5_code import run_glm5_code

    return run_glm5_code(shards, config, out, track)


GLM5_CODE = Recipe(
    CodeConfig,
    _run,
    find=lambda sources, cache_dir: find_repositories(sources),
    default_sources=(PYTHON_STDLIB,),
    unit="repositories",
)
