"""Attempts at problems: a checkpoint answers each of them n times, and the verifier judges.

    attempts/NAME.jsonl   every answer with its reward (`data.attempt_file`)
    counts/NAME.jsonl     (k, n) of every problem

What GLM-5 calls the solve rate of the previous model, by which problems for fine-tuning and for RL
are chosen (report, sections 3.1 and 3.2). Answers that could not be judged are counted apart, by
state; they are neither passes nor failures. Draws come from seeds by problem and number, and every
batch is on the disk before the next begins, so that a kill loses one batch at most.

A problem goes by its id, unless others have the same one: then by its first group.

Surprise: a turn without an answer is worth 0 unasked unless a reward function judges, so that
math-verify still scores a few where it always fails; the first batch is therefore held to a share
(`most_unjudged`).
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fivefold.artifact import atomic_write
from fivefold.data.attempt_file import (
    Answer,
    AttemptedProblem,
    append_attempts,
    read_attempts,
    resume_attempts,
)
from fivefold.envs.open_task import open_task
from fivefold.envs.row import write_row
from fivefold.envs.task import Problem
from fivefold.errors import ConfigError
from fivefold.rl.attempt_config import AttemptedConfig, AttemptsConfig
from fivefold.rl.attempt_page import write_counts, write_page
from fivefold.rl.prompt import Judgement, Prompt, judge_safely
from fivefold.rl.reason import UnjudgedError
from fivefold.rl.rollout import Ask, Completer, EngineCompleter, seed_of
from fivefold.rl.task_prompt import TaskPrompts
from fivefold.serve.engine import Engine
from fivefold.serve.request import SamplingParams
from fivefold.serve.worker import Completion
from fivefold.stage import ProgressTask, StageContext
from fivefold.text.parse import parse_ids
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.sft import check_template
from fivefold.train.start import start_from
from fivefold.verify.verifier import Verifier

logger = logging.getLogger(__name__)


def sample_attempts(
    config: AttemptsConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Let `inputs["start"]` try the problems of all sources; see the module.

    Raises:
        MismatchError: the checkpoint has another tokenizer or chat template.
        ConfigError: a task that cannot be opened, or has no problem at `begin`.
        UnjudgedError: the verifier failed on most attempts at the first problems.
    """
    model, tokenizer = start_from(
        inputs["start"], inputs["tokenizer"], context, longest_tokens=config.max_new_tokens + 1
    )
    check_template(inputs["start"] / "checkpoint")
    completer = EngineCompleter(Engine(model.eval(), config.engine))
    found = dict[str, list[AttemptedProblem]]()
    with Verifier(config.verifier) as verifier:
        for name, source in config.sources.items():
            sampler = _Sampler(name, source, config, completer, tokenizer, verifier, context.seed)
            with context.track(f"attempts at {name}", sampler.size, "problems") as bar:
                asyncio.run(sampler.run(out, bar))
            found[name] = list(read_attempts(out / "attempts" / f"{name}.jsonl"))
            write_counts(out, name, found[name], config, context)
    write_page(out / "page", found, config)


class _Sampler:
    """Tries the problems of one source, a batch at a time."""

    def __init__(
        self,
        name: str,
        source: AttemptedConfig,
        config: AttemptsConfig,
        completer: Completer,
        tokenizer: Tokenizer,
        verifier: Verifier,
        seed: int,
    ) -> None:
        """Open the task."""
        self._name, self._begin, self._config, self._seed = name, source.begin, config, seed
        self._completer, self._tokenizer = completer, tokenizer
        self._task = open_task(source.task)
        self._prompts = TaskPrompts(
            self._task, tokenizer, verifier, name=name, thinks=config.thinks, begin=source.begin
        )
        self.size = _count_problems(source, self._task.size, self._task.name)
        places = range(source.begin, source.begin + self.size)
        self._names = name_problems(self._task.problem(place) for place in places)

    async def run(self, out: Path, bar: ProgressTask) -> None:
        """Sample what is missing; the file has its name once it is whole."""
        whole = out / "attempts" / f"{self._name}.jsonl"
        growing = out / "state" / "attempts" / f"{self._name}.jsonl"
        if whole.is_file():
            bar.advance(self.size)
            return
        done = resume_attempts(growing, self._config.batch_problems)
        if done:
            logger.info("%s: goes on after %d problems", self._name, done)
        bar.advance(done)
        passed = judged = 0
        while done < self.size:
            end = min(done + self._config.batch_problems, self.size)
            batch = await self._sample(range(done, end))
            counts = [problem.count(self._config.pass_reward) for problem in batch]
            if done == 0:
                _check_judged(self._name, batch, self._config.most_unjudged)
            append_attempts(growing, batch)
            passed += sum(count.k for count in counts)
            judged += sum(count.n for count in counts)
            bar.advance(end - done, solved=f"{passed / max(judged, 1):.0%}")
            done = end
        with atomic_write(whole) as partial:
            growing.replace(partial)

    async def _sample(self, indices: range) -> list[AttemptedProblem]:
        """Try some problems, all of their attempts together."""
        config = self._config
        prompts = [self._prompts.prompt(index) for index in indices]
        owners = [prompt for prompt in prompts for _ in range(config.attempts)]
        asks = [
            Ask(
                prompt.ids,
                SamplingParams(
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    seed=seed_of(self._seed, f"attempt {prompt.group}", n % config.attempts),
                ),
            )
            for n, prompt in enumerate(owners)
        ]
        completions = await self._completer.complete(asks)
        pairs = zip(owners, completions, strict=True)
        judgements = await asyncio.gather(*(_judge(prompt, done) for prompt, done in pairs))
        answers = [self._answer(*pair) for pair in zip(completions, judgements, strict=True)]
        size = config.attempts
        return [
            _attempted(
                self._task.problem(self._begin + index),
                self._names[index],
                answers[place * size : (place + 1) * size],
            )
            for place, index in enumerate(indices)
        ]

    def _answer(self, completion: Completion, judgement: Judgement) -> Answer:
        turn = parse_ids(completion.ids, self._tokenizer, is_thinking=self._config.thinks)
        is_aborted = completion.finish == "abort"
        return Answer(
            turn.message,
            tuple(completion.ids),
            None if is_aborted else judgement.value,
            "aborted" if is_aborted else judgement.state,
            judgement.detail,
            is_truncated=completion.finish == "length",
        )


async def _judge(prompt: Prompt, completion: Completion) -> Judgement:
    if completion.finish == "abort":
        return Judgement(None, "infra", "the engine aborted it")
    return await judge_safely(prompt, completion.ids)


def _count_problems(source: AttemptedConfig, size: int | None, name: str) -> int:
    if size is None:
        return source.problems
    if source.begin >= size:
        raise ConfigError(
            expected=f"`begin` within the {size} problems of `{name}`",
            found=str(source.begin),
            fix="Begin earlier; to try the same problems again, use another seed",
        )
    return min(source.problems, size - source.begin)


def name_problems(problems: Iterable[Problem]) -> list[str]:
    """Return a name for each problem: its id, or its first group where other problems have that id.

    A function may give all of its problems one id; joined by it, answers to one problem would be
    learned as answers to another.
    """
    keys = [(problem.id, json.dumps(write_row(problem)), problem.group) for problem in problems]
    groups = dict[tuple[str, str], str]()
    for problem_id, row, group in keys:
        groups.setdefault((problem_id, row), group)
    bearers = Counter(problem_id for problem_id, _ in groups)
    return [
        problem_id if bearers[problem_id] == 1 else groups[problem_id, row]
        for problem_id, row, _ in keys
    ]


def _attempted(problem: Problem, name: str, answers: Sequence[Answer]) -> AttemptedProblem:
    return AttemptedProblem(name, write_row(problem) | {"id": name}, tuple(answers))


def _check_judged(name: str, batch: Sequence[AttemptedProblem], most: float) -> None:
    answers = [answer for problem in batch for answer in problem.answers]
    reasons = Counter(f"{a.state}: {a.detail}" for a in answers if a.reward is None)
    if reasons.total() <= most * len(answers):
        return
    ((reason, times),) = reasons.most_common(1)
    raise UnjudgedError(
        expected=f"attempts at `{name}` that can be judged, all but {most:.0%} of them",
        found=f"{reasons.total()} of the first {len(answers)} that cannot; {times} times "
        f"{reason[:160]}",
        fix="Correct what judges: a wrong answer is worth 0, it does not raise",
    )
