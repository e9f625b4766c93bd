"""Teachers: checkpoints that say how likely they find a student's tokens.

A teacher must read the very ids that the student wrote, so that its tokenizer and its chat template
have to be the student's; both are compared by hash before anything runs. Teachers score through an
engine each, in this process.

A teacher may overflow where the student does not. A token whose log-probability is not finite has
no gap to learn from: it leaves loss and denominators, is counted, and above a share of a batch the
run ends (`TeacherFaultConfig`). A zero in its place would call the student right.

Surprise: the gap to a teacher is measured under the student's engine, whose log-probabilities are
those that the tokens were drawn from, so that its mean estimates KL(student || teacher) unbiased.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fivefold.data.conversation_rows import template_hash
from fivefold.errors import FivefoldError, MismatchError, MissingFileError
from fivefold.models.config import read_config
from fivefold.models.convert import read_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.rl.collect import Collected
from fivefold.rl.rollout import Ask, EngineCompleter, Rollout
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.rl.teacher_config import TeacherFaultConfig
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

SCORING = SamplingParams(max_new_tokens=0, prompt_logprobs_begin=0)
"""Asks for the log-probabilities of a prompt, and for nothing else."""


class TeacherFaultError(FivefoldError, ArithmeticError):
    """A teacher whose log-probabilities are too often not finite."""


class TeacherPool:
    """Teachers by name, and which of them judges each source."""

    def __init__(
        self,
        teachers: Mapping[str, Transformer],
        teacher_of: Mapping[str, str],
        engine: EngineConfig,
        faults: TeacherFaultConfig | None = None,
    ) -> None:
        """Serve each teacher; `teacher_of` names the teacher of each source."""
        self._teacher_of = dict(teacher_of)
        self._faults = faults or TeacherFaultConfig()
        self._completers = {
            name: EngineCompleter(Engine(model, engine)) for name, model in teachers.items()
        }

    async def annotate(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts with their teachers' log-probabilities.

        Tokens that a teacher has no finite one for do not train; theirs stays as it came.

        Raises:
            TeacherFaultError: more of a teacher's tokens than `most_nonfinite_share`.
        """
        found = list(rollouts)
        for name, completer in self._completers.items():
            mine = [n for n, r in enumerate(rollouts) if self._teacher_of[r.source] == name]
            asks = [Ask(rollouts[n].ids.tolist(), SCORING) for n in mine]
            for n, done in zip(mine, await completer.complete(asks), strict=True):
                found[n] = _annotated(rollouts[n], done.prompt_logprobs)
            self._check(name, [found[n] for n in mine])
        return found

    def _check(self, name: str, rollouts: Sequence[Rollout]) -> None:
        broken = sum(int(nonfinite_tokens(rollout).sum()) for rollout in rollouts)
        sampled = sum(rollout.sampled_tokens for rollout in rollouts)
        if not broken:
            return
        logger.warning(
            "teacher `%s`: %d of %d tokens have no finite log-probability; they do not train",
            name,
            broken,
            sampled,
        )
        most = self._faults.most_nonfinite_share
        if broken > most * sampled:
            raise TeacherFaultError(
                expected=f"finite log-probabilities from the teacher `{name}`, but for {most:.2%} "
                "of a batch's tokens",
                found=f"{broken} of {sampled} that are not",
                fix="Look for weights that are not finite in its checkpoint, or serve it in "
                "another dtype",
            )


def _annotated(rollout: Rollout, scores: Sequence[float | None]) -> Rollout:
    first, *others = scores
    assert first is None, "the first token has no log-probability"
    known = np.array([0.0, *(np.nan if x is None else x for x in others)], np.float32)
    mask = rollout.loss_mask & np.isfinite(known)
    return replace(rollout, teacher_logprobs=known, loss_mask=mask)


def nonfinite_tokens(rollout: Rollout) -> np.ndarray:
    """Return which sampled tokens have no finite log-probability of their teacher, bool [n]."""
    assert rollout.teacher_logprobs is not None, "a distillation's rollouts have a teacher"
    return (rollout.versions != NOT_SAMPLED) & ~np.isfinite(rollout.teacher_logprobs)


def measure_gap(collected: Collected) -> dict[str, float]:
    """Return the mean of log student - log teacher over sampled tokens, of all and each source.

    Tokens that the teacher has no finite log-probability for are in no mean; they are counted.
    """
    sums: dict[str, list[float]] = {}
    for rollout in collected.rollouts:
        assert rollout.teacher_logprobs is not None, "a distillation's rollouts have a teacher"
        mask = rollout.loss_mask
        gap = (rollout.rollout_logprobs[mask].astype(np.float64)
               - rollout.teacher_logprobs[mask]).tolist()  # fmt: skip
        for name in ("", f"_{rollout.source}"):
            sums.setdefault(name, []).extend(gap)
    means = {f"rl/teacher_kl_nats{name}": float(np.mean(g)) for name, g in sums.items() if g}
    broken = sum(int(nonfinite_tokens(rollout).sum()) for rollout in collected.rollouts)
    return {**means, "rl/teacher_nonfinite_tokens": broken}


def load_teacher(directory: Path, tokenizer: Tokenizer, student: Path, device: str) -> Transformer:
    """Load the checkpoint of a teacher for a student, after comparing what they read.

    Raises:
        MismatchError: another tokenizer or chat template, or a smaller vocabulary or context.
        MissingFileError: no chat template beside the one or the other.
    """
    found = load_tokenizer(directory).content_hash
    if found != tokenizer.content_hash:
        raise MismatchError(
            expected=f"a teacher with the student's tokenizer ({tokenizer.content_hash})",
            found=f"`{directory}` with another ({found})",
            fix="Distil between checkpoints of one family: a teacher scores the student's own ids",
        )
    mine, theirs = _template_hash(student), _template_hash(directory)
    if mine != theirs:
        raise MismatchError(
            expected=f"a teacher with the student's chat template ({mine})",
            found=f"`{directory}` with another ({theirs})",
            fix="Fine-tune the one or the other on the same format first",
        )
    needed, given = read_config(student), read_config(directory)
    for name in ("vocab_size", "max_position_embeddings"):
        if getattr(given, name) < getattr(needed, name):
            raise MismatchError(
                expected=f"a teacher with `{name}` of at least {getattr(needed, name)}",
                found=f"{getattr(given, name)} in `{directory}`",
                fix="Choose a teacher that can read whatever the student writes",
            )
    return read_checkpoint(directory, dtype=torch.float32, device=device)


def _template_hash(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    if not path.is_file():
        raise MissingFileError(
            expected=f"`chat_template.jinja` in `{directory}`",
            found="no such file",
            fix="Put the template that the checkpoint was trained with beside it",
        )
    return template_hash(path.read_text(encoding="utf-8"))
