"""The stages that find out how hard problems are; each imports its implementation when it runs.

`attempts` samples a checkpoint several times on each problem; `DumpCountsStage` counts what RL has
sampled anyway. Both write `counts/NAME.jsonl` for the stage `choose` (`data.choose`).
"""

from collections.abc import Mapping
from pathlib import Path

from fivefold.rl.attempt_config import AttemptsConfig, DumpCountsConfig
from fivefold.stage import Stage, StageContext


class AttemptsStage(Stage):
    """Tries problems; needs `start` and `tokenizer`, makes `attempts/` and `counts/`."""

    what = "tries each problem several times"
    config: AttemptsConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Sample and judge, or go on after the last whole batch."""
        from fivefold.rl.attempt import sample_attempts

        sample_attempts(self.config, inputs, out, context)


class DumpCountsStage(Stage):
    """Counts the passes in RL's dumped rollouts; needs nothing, makes `counts/`.

    It sees the dumps that are left: `record.dumps_kept` of the stage of RL says how many.
    """

    what = "counts what RL has solved"
    is_seeded = False
    config: DumpCountsConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Read the dumps and write the source's counts."""
        from fivefold.rl.solve_count import write_dump_counts

        write_dump_counts(self.config, out)
