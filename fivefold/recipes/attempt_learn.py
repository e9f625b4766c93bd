"""The stage `sft` of `fivefold attempts`: fine-tuning on the checkpoint's own right answers.

There may be none. That is known once they were chosen, and is then said with the reasons for which
answers were dropped, before a model is loaded.
"""

from collections.abc import Mapping
from pathlib import Path

from fivefold.artifact import read_json
from fivefold.errors import FivefoldError
from fivefold.stage import StageContext
from fivefold.train.stages import SftStage

_LEAST_PROBLEMS = 2
"""One to learn from and one to validate on."""


class TooFewAnswersError(FivefoldError, RuntimeError):
    """Too few answers were kept to learn from."""


class LearnStage(SftStage):
    """Fine-tunes on what was chosen; needs `start`, `tokenizer` and, of `choose`, `conversations`.

    Makes `checkpoint/`.
    """

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Train, or go on from the last saved state."""
        check_chosen(inputs["conversations"])
        super().execute(inputs, out, context)


def check_chosen(choose: Path) -> None:
    """Check that the stage in `choose` has kept answers to at least two problems.

    Raises:
        TooFewAnswersError: it has not.
    """
    outcome = read_json(choose / "outcome.json") or {}
    problems = sum(source["learned_problems"] for source in outcome.values())
    if problems >= _LEAST_PROBLEMS:
        return
    told = list[str]()
    for source in outcome.values():
        reasons = [f"{count:,} ({reason})" for reason, count in source["dropped"].items()]
        told.append(
            f"of {source['answers']:,} answers, {' and '.join(reasons) or 'none'} were dropped; "
            f"{source['truncated']:,} of them all were cut at the token limit"
        )
    raise TooFewAnswersError(
        expected=f"answers to at least {_LEAST_PROBLEMS} problems, one to learn from and one to "
        "validate on",
        found="; ".join([f"those to {problems}", *told]),
        fix="Try more problems (`--problems`, `-n`) or easier ones (`--levels`), allow longer "
        "answers (`attempts.max_new_tokens`) where they were cut, or begin with the task's own "
        "solutions: `fivefold rl ... --sft 400`",
    )
