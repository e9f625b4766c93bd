"""The gradient stages as a recipe names them; each imports its implementation when it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from fivefold.stage import Stage, StageContext
from fivefold.train.config import PretrainConfig


class PretrainStage(Stage):
    """Train a model from nothing; needs `tokens` and `tokenizer`, makes `checkpoint/`."""

    what: ClassVar[str] = "trains the model from nothing"
    config: PretrainConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.train.pretrain import pretrain

        pretrain(self.config, inputs, out, context)
