"""From prompts to a batch: sample groups, judge them, assign advantages, make up for what is lost.

A group may be lost because too few of its rollouts could be judged, or because they all got the
same reward and say nothing (dynamic sampling). Then as many new prompts are drawn, a bounded number
of times. Surprise: making up happens in whole rounds. A prompt that starts whenever another is
dropped would make the batch depend on the order in which judges answer.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fivefold.rl.advantage import assign_advantages
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.prompt import Judgement, Prompt, PromptStream
from fivefold.rl.reason import Judging, Reasons
from fivefold.rl.rollout import Ask, Completer, Rollout, make_rollout, seed_of
from fivefold.rl.sample import Sample, SampleError, check_synchronous, group_samples
from fivefold.serve.request import SamplingParams
from fivefold.serve.worker import Completion

logger = logging.getLogger(__name__)
_NOT_ASKED = Judgement(None, "scored", "not asked")

Annotate = Callable[[Sequence[Rollout]], Awaitable[list[Rollout]]]
"""Fills what a teacher says of each rollout."""


@dataclass(frozen=True)
class Collected:
    """A batch before it trains."""

    samples: list[Sample]
    """With advantages; the groups that were dropped are not among them."""
    rollouts: list[Rollout]
    """All that could be judged, dropped groups included."""
    counts: Counter[str] = field(default_factory=Counter)
    """Groups `drawn`, `kept`, `dropped_*` ...; rollouts `invalid`, `infra` (left out where rewards
    are needed), `broken`, `aborted` (left out), `truncated_masked`; refill `rounds`."""
    has_signal: bool = True
    """Would training on it move anything?"""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rollouts could not be judged, by kind."""
    examples: dict[str, str] = field(default_factory=dict)
    """The judge's words for one rollout of each kind."""


class Collector:
    """Collects batches; the stream of prompts is all of the state that a resumed run needs."""

    def __init__(
        self,
        completer: Completer,
        stream: PromptStream,
        config: LoopConfig,
        seed: int,
        *,
        annotate: Annotate | None = None,
        needs_rewards: bool = True,
        asks_judges: bool = True,
    ) -> None:
        """Sample through a completer; `needs_rewards` drops rollouts that could not be judged.

        Where it does not, judges are for the record alone, and are asked no more once
        `sampling.unjudged_limit` rollouts could not be judged, and fewer could.
        """
        self._completer, self.stream, self._config, self._seed = completer, stream, config, seed
        self._annotate = annotate
        self._needs_rewards, self._asks_judges = needs_rewards, asks_judges
        limit = config.sampling.unjudged_limit
        self._judging = Judging("a rollout", limit, is_record=not needs_rewards)

    @property
    def reasons(self) -> Reasons:
        """Why rollouts could not be judged, as far as no batch that was returned says it."""
        return self._judging.reasons

    async def collect(self, version: int) -> Collected:
        """Return the batch that policy `version` samples next.

        Raises:
            MismatchError: a token of it comes from other weights.
            UnjudgedError: `sampling.unjudged_limit` rollouts could not be judged, and fewer could,
                since this began.
        """
        config = self._config
        counts, samples, rollouts = Counter[str](), list[Sample](), list[Rollout]()
        for _ in range(1 + config.sampling.refill_rounds):
            missing = config.sampling.batch_prompts - counts["kept"]
            if missing <= 0:
                break
            prompts = self.stream.draw(missing)
            found = await self._sample(prompts, counts)
            check_synchronous(found, version)
            if self._annotate is not None:
                found = await self._annotate(found)
            names = [prompt.group for prompt in prompts]
            groups = group_samples(found, config.group_size, names)
            assigned = assign_advantages(groups, config.algorithm)
            samples += assigned.samples
            rollouts += found
            counts.update(assigned.counts)
            counts["drawn"] += len(prompts)
            counts["rounds"] += 1
        signal = self._has_signal(samples)
        return Collected(samples, rollouts, counts, signal, *self._judging.reasons.take())

    async def _sample(self, prompts: Sequence[Prompt], counts: Counter[str]) -> list[Rollout]:
        """Return the usable rollouts of all prompts, in order; count the others."""
        sampling, size = self._config.sampling, self._config.group_size
        asks, owners = list[Ask](), list[Prompt]()
        for prompt in prompts:
            for number in range(size):
                params = SamplingParams(
                    max_new_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    seed=seed_of(self._seed, prompt.group, number),
                    returns_routing=sampling.replays_routing,
                )
                asks.append(Ask(prompt.ids, params))
                owners.append(prompt)
        completions = await self._completer.complete(asks)
        judgements = await self._judge(owners, completions)
        found = []
        for prompt, completion, judgement in zip(owners, completions, judgements, strict=True):
            rollout = self._usable(prompt, completion, judgement, counts)
            found += [] if rollout is None else [rollout]
        return found

    async def _judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[Judgement]:
        if not self._asks_judges:
            return [_NOT_ASKED] * len(prompts)
        pairs = zip(prompts, completions, strict=True)
        tasks = [asyncio.ensure_future(self._judge_one(*pair)) for pair in pairs]
        if self._needs_rewards:
            return await asyncio.gather(*tasks)
        return await self._judge_for_the_record(tasks)

    async def _judge_for_the_record(
        self, tasks: Sequence[asyncio.Future[Judgement]]
    ) -> list[Judgement]:
        """Wait for judgements that nothing depends on, as long as most of them can be given."""
        for judged in asyncio.as_completed(tasks):
            await judged
            if self._judging.is_hopeless:
                break
        else:
            return [task.result() for task in tasks]
        self._asks_judges = False
        logger.warning(
            "%d rollouts could not be judged, and fewer could: judges are asked no more, for "
            "nothing depends on them here",
            self._judging.failed,
        )
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return [_NOT_ASKED if task.cancelled() else task.result() for task in tasks]

    async def _judge_one(self, prompt: Prompt, completion: Completion) -> Judgement:
        if completion.finish == "abort":
            return Judgement(None, "infra", "the engine aborted it")
        return await self._judging.judge(prompt, completion.ids)

    def _usable(
        self, prompt: Prompt, completion: Completion, judgement: Judgement, counts: Counter[str]
    ) -> Rollout | None:
        if completion.finish == "abort":
            counts["aborted"] += 1
            return None
        if judgement.state != "scored":
            counts[judgement.state] += 1
            if self._needs_rewards:
                return None
        try:
            return make_rollout(prompt, completion, judgement)
        except SampleError as error:
            counts["broken"] += 1
            # Within the words, the group's name would make a kind of each group.
            words = str(error).replace(f" of group `{prompt.group}`", "")
            self._judging.reasons.note(prompt, Judgement(None, "invalid", words))
            return None

    def _has_signal(self, samples: Sequence[Sample]) -> bool:
        trained = [sample for sample in samples if sample.loss_tokens]
        if self._config.algorithm.distillation is not None:
            return bool(trained)
        return any(bool(np.any(sample.advantages)) for sample in trained)
