"""The stage `distill`: several teachers, each on its own prompts, into one student.

Cross-stage distillation (GLM-5 report, section 3.5): the student samples, the teacher of the prompt
scores the student's tokens, and the gap is the advantage. Groups of one; the verifier's rewards are
recorded and do not count. Surprise: no baseline is needed, for a token's gap has zero mean where
the student is already the teacher.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from fivefold.errors import ConfigError
from fivefold.rl.loop_config import DistillConfig
from fivefold.rl.reinforce import (
    Teaching,
    open_policy,
    open_supply,
    train_policy,
    write_policy,
)
from fivefold.rl.teacher import TeacherPool, load_teacher, measure_gap
from fivefold.stage import StageContext
from fivefold.verify.verifier import Verifier

logger = logging.getLogger(__name__)


def distil(
    config: DistillConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Train `inputs["start"]` towards its teachers; writes `out/checkpoint`.

    Raises:
        ConfigError: a teacher that is no input of the stage.
        MismatchError: a teacher with another tokenizer, chat template or a smaller model's reach.
        TeacherFaultError: a teacher's log-probabilities are too often not finite.
        NoSignalError, DivergenceError: nothing to learn from, or too much.
    """
    model, tokenizer = open_policy(config, inputs, context)
    student = inputs["start"] / "checkpoint"
    teachers = {}
    for name in dict.fromkeys(source.teacher for source in config.sources):
        if name not in inputs:
            raise ConfigError(
                expected=f"an input `{name}` with the checkpoint of a teacher",
                found=", ".join(inputs),
                fix="Name the stage that makes it in `needs`",
            )
        directory = inputs[name] / "checkpoint"
        teachers[name] = load_teacher(directory, tokenizer, student, context.device)
    with Verifier(config.verifier) as verifier:
        supply = open_supply(config.sources, config, tokenizer, verifier)
        pairs = zip(supply.sources, config.sources, strict=True)
        teacher_of = {source.name: chosen.teacher for source, chosen in pairs}
        pool = TeacherPool(teachers, teacher_of, config.engine, config.faults)
        teaching = Teaching(pool.annotate, measure_gap, config.scores_rewards)
        train_policy(model, supply, config, context, out, teaching)
        logger.info("verdicts: %s", dict(verifier.counts))
    write_policy(model, tokenizer, out)
