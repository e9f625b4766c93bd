"""The stages of RL as a recipe names them; each imports its implementation when it runs."""

from collections.abc import Mapping
from pathlib import Path

from fivefold.rl.loop_config import DistillConfig, RlConfig
from fivefold.stage import Stage, StageContext


class RlStage(Stage):
    """Learn from verified rewards; needs `start` and `tokenizer`, makes `checkpoint/`."""

    what = "learns from rewards"
    config: RlConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.rl.reinforce import reinforce

        reinforce(self.config, inputs, out, context)


class DistillStage(Stage):
    """Learn from teachers; needs `start`, `tokenizer` and each teacher, makes `checkpoint/`.

    Teachers are inputs under the names that `sources` give them.
    """

    what = "learns from its teachers"
    config: DistillConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.rl.distil import distil

        distil(self.config, inputs, out, context)
