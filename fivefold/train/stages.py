"""The gradient stages as a recipe names them; each imports its implementation when it runs."""

from collections.abc import Mapping
from pathlib import Path

from fivefold.stage import Stage, StageContext
from fivefold.train.config import AdaptDsaConfig, MidtrainConfig, PretrainConfig
from fivefold.train.sft_config import SftConfig


class PretrainStage(Stage):
    """Train a model from nothing; needs `tokens` and `tokenizer`, makes `checkpoint/`."""

    what = "trains the model from nothing"
    is_distributed = True
    config: PretrainConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.train.pretrain import pretrain

        pretrain(self.config, inputs, out, context)


class MidtrainStage(Stage):
    """Train on longer contexts; needs `start`, `tokens` and `tokenizer`, makes `checkpoint/`."""

    what = "extends the context"
    is_distributed = True
    config: MidtrainConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.train.midtrain import midtrain

        midtrain(self.config, inputs, out, context)


class AdaptDsaStage(Stage):
    """Adapt to sparse attention; needs `start`, `tokens`, `tokenizer`, makes `checkpoint/`.

    May need `control`, a dense training from the same start, to compare with.
    """

    what = "adapts the model to sparse attention"
    is_distributed = True
    config: AdaptDsaConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.train.adapt_dsa import adapt_dsa

        adapt_dsa(self.config, inputs, out, context)


class SftStage(Stage):
    """Fine-tune on conversations; needs `start`, `tokenizer`, `conversations`, makes `checkpoint/`.

    `conversations` is a directory with `*.jsonl`, one conversation a line.
    """

    what = "learns from conversations"
    is_distributed = True
    config: SftConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        from fivefold.train.sft import sft

        sft(self.config, inputs, out, context)
