"""The policy on held-out prompts: mean reward, pass rate, and how sure one can be of them.

The prompts and the seeds are the same at every examination, so that two differ by the policy alone.
Errors are standard errors of the mean over prompts, rollouts of a prompt averaged before: these are
not independent, and counting them as such would promise too much (Miller 2024, arXiv 2411.00640).

An answer that the engine gave up, or that the judge cannot judge, is in no mean and in a count of
its own: a pass rate over half of the problems is another examination. Where most answers cannot be
judged there is none.
"""

import asyncio
import math
from collections.abc import Container, Sequence
from typing import NamedTuple

from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.prompt import Judgement, Prompt
from fivefold.rl.reason import Judging, Reasons
from fivefold.rl.rollout import Ask, Completer, seed_of
from fivefold.serve.request import SamplingParams
from fivefold.serve.worker import Completion


class Mean(NamedTuple):
    """A mean with its standard error."""

    value: float
    error: float
    """NaN where one cannot be given."""


def mean_of_groups(groups: Sequence[Sequence[float]]) -> Mean:
    """Return the mean of the groups' means, and its standard error; empty groups are left out."""
    means = [math.fsum(group) / len(group) for group in groups if group]
    n = len(means)
    if not n:
        return Mean(math.nan, math.nan)
    mean = math.fsum(means) / n
    if n < 2:
        return Mean(mean, math.nan)
    variance = math.fsum((value - mean) * (value - mean) for value in means) / (n - 1)
    return Mean(mean, math.sqrt(variance / n))


class Examination(NamedTuple):
    """What an examination found."""

    metrics: dict[str, float]
    """`rl/eval_...`, of all sources that train together and of each source."""
    shown: list[tuple[Prompt, Completion, float | None]]
    """A few answers, for the report."""


class Examiner:
    """Held-out prompts, ready to be answered."""

    def __init__(
        self,
        completer: Completer,
        prompts: Sequence[Prompt],
        config: LoopConfig,
        seed: int,
        *,
        beside: Container[str] = (),
    ) -> None:
        """Examine on `prompts`, in the way that `config.evaluation` says.

        `beside` names sources that do not train: they have no part in the numbers of all together.
        """
        self._completer, self._prompts, self._config = completer, list(prompts), config
        self._seed = seed
        self._judging = Judging("a held-out answer", config.sampling.unjudged_limit)
        self._beside = beside

    @property
    def reasons(self) -> Reasons:
        """Why held-out answers could not be judged, since it was taken last."""
        return self._judging.reasons

    async def examine(self) -> Examination:
        """Let the policy that the engine serves answer everything.

        Raises:
            UnjudgedError: `sampling.unjudged_limit` answers could not be judged, and fewer could.
        """
        self._judging.begin_anew()
        config = self._config.evaluation
        owners = [prompt for prompt in self._prompts for _ in range(config.rollouts)]
        asks = [
            Ask(
                prompt.ids,
                SamplingParams(
                    max_new_tokens=self._config.sampling.max_new_tokens,
                    temperature=config.temperature,
                    seed=seed_of(self._seed, f"examination {prompt.group}", n % config.rollouts),
                ),
            )
            for n, prompt in enumerate(owners)
        ]
        completions = await self._completer.complete(asks)
        rewards: dict[str, list[float]] = {prompt.group: [] for prompt in self._prompts}
        shown, failed, tokens = list[tuple[Prompt, Completion, float | None]](), 0, 0
        pairs = list(zip(owners, completions, strict=True))
        judgements = await asyncio.gather(*(self._judge(*pair) for pair in pairs))
        for (prompt, completion), judgement in zip(pairs, judgements, strict=True):
            tokens += len(completion.ids)
            if judgement.value is None:
                failed += 1
            else:
                rewards[prompt.group].append(judgement.value)
            shown.append((prompt, completion, judgement.value))
        metrics = self._measure(rewards)
        metrics["rl/eval_rollouts"] = len(owners)
        metrics["rl/eval_response_tokens"] = tokens / max(len(owners), 1)
        metrics["rl/eval_failed_rollouts"] = failed
        return Examination(metrics, shown[:: config.rollouts][: self._config.record.shown_rollouts])

    async def _judge(self, prompt: Prompt, completion: Completion) -> Judgement:
        if completion.finish == "abort":
            aborted = Judgement(None, "infra", "the engine gave the request up")
            self._judging.reasons.note(prompt, aborted)
            return aborted
        return await self._judging.judge(prompt, completion.ids)

    def _measure(self, rewards: dict[str, list[float]]) -> dict[str, float]:
        sources = list(dict.fromkeys(prompt.source for prompt in self._prompts))
        metrics: dict[str, float] = {}
        parts = {"": [p for p in self._prompts if p.source not in self._beside]}
        for name in sources:
            parts[f"_{name}"] = [p for p in self._prompts if p.source == name]
        least = self._config.evaluation.pass_reward
        for suffix, prompts in parts.items():
            groups = [rewards[prompt.group] for prompt in prompts]
            passes = [[float(reward >= least) for reward in group] for group in groups]
            reward, passed = mean_of_groups(groups), mean_of_groups(passes)
            metrics[f"rl/eval_reward_mean{suffix}"] = reward.value
            metrics[f"rl/eval_reward_error{suffix}"] = reward.error
            metrics[f"rl/eval_pass_rate{suffix}"] = passed.value
            metrics[f"rl/eval_pass_error{suffix}"] = passed.error
        return {name: value for name, value in metrics.items() if not math.isnan(value)}
