"""The synchronous loop: sample, judge, train, push, again.

One policy version samples a batch, the batch is trained on, the new weights go to the engine, and
only then the next one is sampled; tokens of two versions never meet (`check_synchronous`). A batch
without signal is left out, counted, and after too many in a row an error. Which prompts come next,
which version samples and how many updates there were is all in `Progress`; draws come from seeds by
counter, so that a run that was killed at any moment goes on bit for bit.

Surprise: one event loop carries both halves. Sampling awaits the engine's thread and the judges;
training blocks it, and nothing else would want to run meanwhile: overlap is the asynchronous loop.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fivefold.rl.collect import Collected, Collector
from fivefold.rl.dump import write_dump
from fivefold.rl.examine import Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop_config import LoopConfig
from fivefold.rl.progress import (
    Progress,
    add_histogram,
    count_batch,
    judged_rollouts,
    note_no_signal,
    note_updates,
    sampling_metrics,
    training_metrics,
)
from fivefold.rl.rollout import Completer
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
        DivergenceError: too many updates in a row had a non-finite gradient.
        MismatchError: a token of other weights than the present ones, or a state of other prompts.
    """
    context.metrics.forget_after(progress.batch if progress.batch else -1)
    if progress.version > await players.completer.version():
        await players.completer.push(progress.version)
    if progress.drawn:
        players.collector.stream.seek(progress.drawn)
    if progress.batch == 0:
        await _examine(players, config, context, progress)
    with context.track("policy", config.batches, "batches") as bar:
        bar.advance(progress.batch)
        while progress.batch < config.batches:
            values = await _batch(players, config, context, out, progress)
            is_last = progress.batch == config.batches
            if progress.batch % config.evaluation.every_batches == 0 or is_last:
                await _examine(players, config, context, progress)
            if progress.batch % config.record.checkpoint_batches == 0 or is_last:
                learner = players.learner
                state = progress.model_dump()
                save_state(
                    out / "state" / "training",
                    progress.batch,
                    learner.model,
                    learner.optimizer,
                    state,
                )
            bar.advance(1, reward=f"{values.get('rl/reward_mean', float('nan')):.3f}")
    return progress


async def _batch(
    players: Players, config: LoopConfig, context: StageContext, out: Path, progress: Progress
) -> dict[str, float]:
    """Sample one batch and train on it; returns its numbers."""
    begin, learner = time.perf_counter(), players.learner
    collected = await players.collector.collect(progress.version)
    sampled = time.perf_counter()
    count_batch(progress, collected)
    progress.drawn = dict(players.collector.stream.drawn)
    values = sampling_metrics(collected, config) | players.measure(collected)
    updates = []
    if collected.has_signal:
        progress.no_signal_in_row = 0
        _dump(collected, config, out, progress)
        shown = config.record.shown_rollouts
        progress.judged = judged_rollouts(collected, players.decode, shown)
        updates, mismatch = learner.train(collected.samples, progress.updates)
        add_histogram(progress, mismatch)
        values |= training_metrics(updates, mismatch)
        progress.version += 1
        learner.compute.refresh()
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
        line = _line(progress, config, values)
    context.metrics.write(progress.batch, values, shown=line)
    progress.history.append({"batch": progress.batch, **_kept(values)})
    note_updates(progress, updates, config)
    if not collected.has_signal:
        note_no_signal(progress, collected, config)
    return values


def _dump(collected: Collected, config: LoopConfig, out: Path, progress: Progress) -> None:
    record = config.record
    if record.dumps_kept and progress.batch % record.dump_batches == 0:
        facts = {"policy_version": progress.version, "updates_before": progress.updates}
        directory = out / "state" / "rollouts"
        write_dump(directory, progress.batch, collected.samples, facts, record.dumps_kept)


async def _examine(
    players: Players, config: LoopConfig, context: StageContext, progress: Progress
) -> None:
    """Examine the present policy, and keep a few answers for the report."""
    if not config.evaluation.prompts:
        return
    found = await players.examiner.examine()
    metrics = found.metrics
    shown = None
    if "rl/eval_reward_mean" in metrics:
        shown = (
            f"batch {progress.batch}  held-out reward {metrics['rl/eval_reward_mean']:.3f} "
            f"± {metrics.get('rl/eval_reward_error', float('nan')):.3f}, "
            f"pass rate {metrics['rl/eval_pass_rate']:.1%}"
        )
    context.metrics.write(progress.batch, metrics, shown=shown)
    progress.history.append({"batch": progress.batch, **_kept(metrics)})
    for prompt, completion, reward in found.shown:
        judged = "not judged" if reward is None else f"reward {reward:g}"
        label = f"batch {progress.batch}, {judged}"
        text = {"prompt": players.decode(prompt.ids), "text": players.decode(completion.ids)}
        progress.shown.append({"label": label, **text})


def _line(progress: Progress, config: LoopConfig, values: dict[str, float]) -> str:
    names = ("reward_mean", "pass_rate", "response_tokens_mean", "rho_mean", "gradient_norm")
    found = [f"{name} {values[f'rl/{name}']:.3g}" for name in names if f"rl/{name}" in values]
    skipped = "  SKIPPED: no signal" if values["rl/no_signal"] else ""
    return f"batch {progress.batch}/{config.batches}  " + "  ".join(found) + skipped


def _kept(values: dict[str, float]) -> dict[str, float]:
    """Return what the report's page draws."""
    prefixes = ("rl/reward", "rl/pass", "rl/eval", "rl/teacher_kl", "rl/response_tokens_mean")
    more = ("rl/sampled_entropy_nats", "rl/clip", "rl/masked", "rl/rho_mean", "rl/rho_outside")
    return {k: float(v) for k, v in values.items() if k.startswith((*prefixes, *more))}
