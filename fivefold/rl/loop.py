"""The synchronous loop: sample, judge, train, push, again.

One policy version samples a batch, the batch is trained on, the new weights go to the engine, and
only then the next one is sampled; tokens of two versions never meet (`check_synchronous`). A batch
without signal is left out, counted, and after too many in a row an error. Which prompts come next,
which version samples and how many updates there were is all in `Progress`; draws come from seeds by
counter, so that a run that was killed at any moment goes on bit for bit.

Surprise: one event loop carries both halves, and only judges are awaited. Sampling and training
block it; nothing else would want to run meanwhile: overlap is the asynchronous loop.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fivefold.errors import FivefoldError
from fivefold.rl.collect import Collected, Collector
from fivefold.rl.dump import write_dump
from fivefold.rl.examine import Examination, Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.page import write_page
from fivefold.rl.progress import (
    Progress,
    add_histogram,
    batch_line,
    count_batch,
    count_heldout_reasons,
    count_reasons,
    examination_line,
    note_no_signal,
    note_updates,
    sampling_metrics,
    training_metrics,
)
from fivefold.rl.rollout import Completer
from fivefold.rl.shown import choose_shown, describe_shown
from fivefold.stage import StageContext
from fivefold.train.checkpoint import load_state, save_state

logger = logging.getLogger(__name__)

Measure = Callable[[Collected], dict[str, float]]
"""What a stage wants to know of a batch beside what the loop records."""


@dataclass(frozen=True)
class Players:
    """Who takes part."""

    learner: PolicyLearner
    completer: Completer
    """Serves the learner's weights."""
    collector: Collector
    """Samples through the completer."""
    examiner: Examiner
    """Examines through the completer."""
    decode: Callable[[Sequence[int]], str]
    """Ids to text, for the report."""
    measure: Measure = lambda _: {}


def resume(learner: PolicyLearner, states: Path) -> Progress:
    """Load the newest state in `states`, if there is one; the engine is built after that."""
    saved = load_state(states, learner.model, learner.optimizer)
    learner.compute.refresh()
    if saved is None:
        return Progress()
    progress = Progress.model_validate(saved)
    logger.info("goes on at batch %d, policy version %d", progress.batch, progress.version)
    return progress


async def run_loop(
    players: Players, config: LoopConfig, context: StageContext, out: Path, progress: Progress
) -> Progress:
    """Take all batches that are left; `progress` is what `resume` returned.

    Raises:
        NoSignalError: too many batches in a row say nothing.
        DivergenceError: too many updates in a row had a non-finite gradient or loss.
        UnjudgedError: most rollouts cannot be judged.
        MismatchError: a token of other weights than the present ones, or a state of other prompts.
    """
    context.metrics.forget_after(progress.batch if progress.batch else -1)
    if progress.version > await players.completer.version():
        await players.completer.push(progress.version)
    if progress.drawn:
        players.collector.stream.seek(progress.drawn)
    try:
        # A state is older than the examination of its batch, which may have failed.
        if _is_moment(progress, config):
            await _examine(players, config, context, out, progress)
        with context.track("policy", config.batches, "batches") as bar:
            bar.advance(progress.batch)
            while progress.batch < config.batches:
                values = await take_batch(players, config, context, out, progress)
                is_last = progress.batch == config.batches
                if progress.batch % config.record.checkpoint_batches == 0 or is_last:
                    _save(players.learner, out, progress)
                if _is_moment(progress, config):
                    await _examine(players, config, context, out, progress)
                bar.advance(1, reward=f"{values.get('rl/reward_mean', float('nan')):.3f}")
    except FivefoldError:
        count_reasons(progress, *players.collector.reasons.take())
        write_page(progress, config, out / "page")  # most wanted when nothing is learned
        raise
    return progress


def _save(learner: PolicyLearner, out: Path, progress: Progress) -> None:
    directory = out / "state" / "training"
    state = progress.model_dump()
    save_state(directory, progress.batch, learner.model, learner.optimizer, state)


async def take_batch(
    players: Players, config: LoopConfig, context: StageContext, out: Path, progress: Progress
) -> dict[str, float]:
    """Sample one batch and train on it; returns its numbers."""
    begin, learner = time.perf_counter(), players.learner
    collected = await players.collector.collect(progress.version)
    sampled = time.perf_counter()
    count_batch(progress, collected)
    progress.drawn = dict(players.collector.stream.drawn)
    values = sampling_metrics(collected, config) | players.measure(collected)
    _dump(collected, config, out, progress)
    updates = []
    if collected.has_signal:
        progress.no_signal_in_row = 0
        is_shown = not progress.judged or _is_moment(progress, config)
        teaching = config.algorithm.distillation
        wanted = config.record.shown_rollouts if is_shown else 0
        shown = choose_shown(collected.samples, wanted, teaching)
        before = learner.logprobs(shown)
        updates, mismatch = learner.train(collected.samples, progress.updates)
        add_histogram(progress, mismatch)
        values |= training_metrics(updates, mismatch)
        progress.version += 1
        learner.compute.refresh()
        if shown:
            after = learner.logprobs(shown)
            progress.judged = describe_shown(shown, before, after, players.decode, teaching)
        await players.completer.push(progress.version)
        if config.update.optimizer_reset == "each_push":
            learner.optimizer.reset()
    values |= {
        "rl/policy_version": progress.version,
        "rl/no_signal": not collected.has_signal,
        "rl/sample_seconds": sampled - begin,
        "rl/train_seconds": time.perf_counter() - sampled,
    }
    line = None
    if progress.batch % config.record.log_batches == 0 or not updates:
        line = batch_line(progress, config, values)
    context.metrics.write(progress.batch, values, shown=line)
    note_updates(progress, updates, config)
    if not collected.has_signal:
        note_no_signal(progress, collected, config)
    return values


def _is_moment(progress: Progress, config: LoopConfig) -> bool:
    """Is the policy examined after this batch, and shown in the report?"""
    is_last = progress.batch == config.batches
    return is_last or progress.batch % config.evaluation.every_batches == 0


def _dump(collected: Collected, config: LoopConfig, out: Path, progress: Progress) -> None:
    record = config.record
    if record.dumps_kept and progress.batch % record.dump_batches == 0:
        facts = {"policy_version": progress.version, "updates_before": progress.updates}
        directory = out / "state" / "rollouts"
        write_dump(
            directory,
            progress.batch,
            collected.samples,
            facts,
            record.dumps_kept,
            collected.rollouts,
        )


async def _examine(
    players: Players, config: LoopConfig, context: StageContext, out: Path, progress: Progress
) -> None:
    """Examine the present policy, and write the report with a few of its answers."""
    if config.evaluation.prompts:
        try:
            found = await players.examiner.examine()
        finally:
            count_heldout_reasons(progress, *players.examiner.reasons.take())
        _keep_examination(found, players, context, progress)
    write_page(progress, config, out / "page")


def _keep_examination(
    found: Examination, players: Players, context: StageContext, progress: Progress
) -> None:
    line = examination_line(progress, found.metrics)
    context.metrics.write_once(progress.batch, found.metrics, shown=line)
    for prompt, completion, reward in found.shown:
        judged = "not judged" if reward is None else f"reward {reward:g}"
        label = f"batch {progress.batch}, {judged}"
        text = {"prompt": players.decode(prompt.ids), "text": players.decode(completion.ids)}
        progress.shown.append({"label": label, **text})
