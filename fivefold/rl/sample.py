"""Samples: what was sampled, by whom, and how it shall train, one value a token.

The one currency of post-training. An environment's rollout becomes a `Sample`; an algorithm fills
its `advantages` and `weights`; the trainer reads streams and knows no algorithm. Supervised and
distilled samples are the same thing filled otherwise.

Index rule: every stream is aligned to the token itself. Place t of `rollout_logprobs` is
log p(ids[t] | ids[:t]), so that place 0 never trains. Surprise: a log-probability that is not
finite is an error only where the token trains; engines have none for prompts and tool output.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fivefold.errors import FivefoldError, MismatchError
from fivefold.verify.verdict import LARGEST, is_reward

NOT_SAMPLED = -1
"""Policy version of a token that no policy sampled: prompt, tool output, template."""


class SampleError(FivefoldError, ValueError):
    """A sample that cannot train: streams of other lengths, non-finite numbers, no token."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence of `n` tokens with its streams; checked when it is made."""

    ids: np.ndarray
    """Prompt and response, int64 [n]."""
    loss_mask: np.ndarray
    """Does the token train? bool [n]; never the first."""
    rollout_logprobs: np.ndarray
    """Log-probability at which the engine sampled each token, in nats, float [n]."""
    versions: np.ndarray
    """Policy version that sampled each token, or `NOT_SAMPLED`, int32 [n]."""
    group: str
    """Group of the sample: rollouts of one prompt share it."""
    reward: float | None
    """Reward of the whole sample; None where a teacher judges alone."""
    source: str = ""
    """Task or teacher, for metrics."""
    teacher_logprobs: np.ndarray | None = None
    """Log-probability of each token under the teacher, float [n]."""
    advantages: np.ndarray | None = None
    """What the algorithm assigned, float [n]; None: not assigned."""
    weights: np.ndarray | None = None
    """Factor of each token's loss, not counted in denominators, float [n]; None: ones."""
    copies: int = 1
    """How often the sample counts, in loss and denominators, as if it stood there so often."""
    is_truncated: bool = False
    """Did the response end at the token limit?"""

    def __post_init__(self) -> None:
        """Refuse what would train on nonsense."""
        self._check_lengths()
        if self.loss_mask[0]:
            raise self._error("a first token without loss", "one with it", "Mask it")
        if self.reward is not None and not is_reward(self.reward):
            raise self._error(
                f"a reward that is a number of at most {LARGEST:g}",
                str(self.reward),
                "Leave a sample whose verifier failed out of its group; scale down large rewards",
            )
        if self.copies < 1:
            raise self._error("`copies` of at least 1", str(self.copies), "Leave the sample out")
        if (self.versions[self.loss_mask] == NOT_SAMPLED).any():
            raise self._error(
                "a policy version for each token that trains",
                "a token that no policy sampled",
                "Mask tokens that come from prompts, tools and templates",
            )
        for name in ("rollout_logprobs", "teacher_logprobs", "advantages", "weights"):
            self._check_values(name)

    @property
    def loss_tokens(self) -> int:
        """Number of tokens that train."""
        return int(self.loss_mask.sum())

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that a policy sampled, whether they train or not."""
        return int((self.versions != NOT_SAMPLED).sum())

    def _check_lengths(self) -> None:
        lengths = {
            field.name: len(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        if len(set(lengths.values())) > 1 or len(self.ids) < 2:
            raise self._error(
                "streams of one length, at least 2 tokens",
                ", ".join(f"{name} {length}" for name, length in lengths.items()),
                "Give one value a token, prompt included",
            )

    def _check_values(self, name: str) -> None:
        stream = getattr(self, name)
        if stream is None:
            return
        bad = np.flatnonzero(self.loss_mask & ~np.isfinite(stream))
        if len(bad):
            raise self._error(
                f"finite `{name}` where the sample trains",
                f"{stream[bad[0]]} at token {bad[0]} and {len(bad) - 1} more",
                "Look for overflow in what computed them, or leave the sample out",
            )
        if name.endswith("logprobs") and (stream[self.loss_mask] > 1e-3).any():
            raise self._error(
                f"`{name}` of at most 0",
                f"{stream[self.loss_mask].max():.3g}",
                "Give natural logarithms of probabilities",
            )

    def _error(self, expected: str, found: str, fix: str) -> SampleError:
        return SampleError(
            expected=f"{expected} in a sample of group `{self.group}`", found=found, fix=fix
        )


@dataclass(frozen=True)
class Group:
    """The valid samples of one prompt, and how many were wanted."""

    name: str
    """Identity of the group."""
    samples: tuple[Sample, ...]
    """Those whose environment and verifier did not fail."""
    wanted: int
    """Rollouts that were started."""


def group_samples(samples: Iterable[Sample], wanted: int, names: Sequence[str] = ()) -> list[Group]:
    """Gather samples by group, in order of first appearance, whatever order they arrived in.

    `names` also lists groups of which no sample may have survived.

    Raises:
        SampleError: a group of more than `wanted` samples.
    """
    members: dict[str, list[Sample]] = {name: [] for name in names}
    for sample in samples:
        members.setdefault(sample.group, []).append(sample)
    for name, found in members.items():
        if len(found) > wanted:
            raise SampleError(
                expected=f"at most {wanted} samples in group `{name}`",
                found=str(len(found)),
                fix="Give each prompt of a step a group of its own",
            )
    return [Group(name, tuple(found), wanted) for name, found in members.items()]


def check_synchronous(samples: Iterable[Sample], policy_version: int) -> None:
    """Refuse samples of a synchronous stage that another policy than the current one sampled.

    Raises:
        MismatchError: a token of another version.
    """
    for sample in samples:
        versions = np.unique(sample.versions[sample.versions != NOT_SAMPLED])
        if len(versions) and (versions != policy_version).any():
            raise MismatchError(
                expected=f"samples of policy version {policy_version} alone in a synchronous stage",
                found=f"versions {versions.tolist()} in group `{sample.group}`",
                fix="Wait for the engine to confirm new weights before sampling",
            )
