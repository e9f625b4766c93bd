"""The name under which `fivefold data run` finds the recipe; nothing heavy is imported for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fivefold.data.curate.command import Recipe
from fivefold.data.curate.shard import Shard
from fivefold.data.web.config import WebConfig
from fivefold.stage import Track

if TYPE_CHECKING:
    from fivefold.data.curate.dclm_baseline import Curated


def _run(shards: Sequence[Shard], config: WebConfig, out: Path, track: Track | None) -> "Curated":
    from fivefold.data.web.glm5_web import run_glm5_web

    return run_glm5_web(shards, config, out, track)


GLM5_WEB = Recipe(WebConfig, _run)
