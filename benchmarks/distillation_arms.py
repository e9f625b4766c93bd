"""Three ways from one start towards one skill: on-policy distillation, off-policy distillation, RL.

A model is fine-tuned on solved problems until it has some of the skill: the start. A copy goes on
until it has most of it: the teacher. Then each arm has the same CPU seconds, the work of teachers
and engines included, and is examined on held-out problems:

    on_policy    the student samples, the teacher's log-probabilities judge each token
    off_policy   the teacher samples, the student is fine-tuned on that
    rl           the student samples groups, the verifier judges whole answers

One JSON object a line for each arm, and one in the shape of the other benchmarks: the pass rate
that on-policy distillation gained over the gain of RL, with the median over seeds. With the arms,
settings, commit, versions and machine it is also the record, `benchmarks/results/NAME.json`,
rewritten after each seed. `--checkpoint` starts from a trained model's directory instead of random
weights.

Surprise: fine-tuning needs no trainer of its own. Advantages of 1 and the current policy as the old
one make the policy's loss the cross-entropy.
"""

import argparse
import asyncio
import copy
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, add_options

from fivefold.artifact import write_json
from fivefold.envs.config import ProceduralConfig
from fivefold.envs.procedural import ProceduralTask
from fivefold.manifest import describe_run
from fivefold.models.convert import read_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset as shape
from fivefold.models.transformer import Transformer
from fivefold.rl.collect import Collector
from fivefold.rl.config import AlgorithmConfig, PpoClipConfig, ReductionConfig
from fivefold.rl.examine import Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop_config import EvaluationConfig, LoopConfig, SamplingConfig, UpdateConfig
from fivefold.rl.preset import distil, icepop
from fivefold.rl.prompt import PromptStream
from fivefold.rl.rollout import EngineCompleter
from fivefold.rl.sample import NOT_SAMPLED, Sample
from fivefold.rl.task_prompt import TaskPrompts
from fivefold.rl.teacher import TeacherPool
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.template import render
from fivefold.text.tokenizer import Tokenizer, load_tokenizer
from fivefold.train.compute import ComputeModel
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.pretrain import freeze_indexers
from fivefold.verify.config import VerifierConfig
from fivefold.verify.verifier import Verifier

RATES = {"on_policy": 1e-3, "off_policy": 1e-3, "rl": 2e-4}
"""Learning rate of each arm: the best of 1e-3 and 3e-4, of 3e-3 and 1e-3, and of 1e-3, 5e-4 and
2e-4, by its gain in 6 CPU seconds on the default skill."""
ROLLOUTS, GROUP, NEW_TOKENS = 32, 8, 48
ENGINE = EngineConfig(block_tokens=8, pool_tokens=16_384)
FINE_TUNING = AlgorithmConfig(loss=PpoClipConfig(), reduction=ReductionConfig(kind="token_mean"))
"""Its samples come with their advantages."""


def main() -> None:
    """Run every arm on each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--checkpoint", type=Path, help="directory of the model to begin with")
    parser.add_argument("--skill", default="copy")
    parser.add_argument("--levels", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, help="CPU seconds of an arm (quick: 6, else 30)")
    parser.add_argument("--start", type=float, default=0.3, help="least pass rate of the start")
    parser.add_argument("--teacher", type=float, default=0.9, help="least pass rate of the teacher")
    parser.add_argument("--most-updates", type=int, default=600, help="of fine-tuning, in all")
    parser.add_argument("--lr", type=float, default=3e-3, help="rate of start and teacher")
    parser.add_argument("--name", default="distillation_arms", help="of the record")
    for arm, rate in RATES.items():
        parser.add_argument(f"--lr-{arm.replace('_', '-')}", type=float, default=rate)
    options = parser.parse_args()
    options.seconds = options.seconds or (6.0 if options.quick else 30.0)
    torch.set_num_threads(options.threads)
    seeds = range(options.pairs or (1 if options.quick else 3))
    found = list[dict[str, dict[str, Any]]]()
    for seed in seeds:
        found.append(asyncio.run(_run_seed(options, seed)))
        record(options, found)
    print(json.dumps(summarise(found, options.name)))


def record(options: argparse.Namespace, found: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Write what is known so far."""
    manifest = describe_run(
        options.name,
        seed=0,
        device="cpu",
        threads=options.threads,
        config_hash="",
        command=sys.argv,
    )
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    arms = [arm for arms in found for arm in arms.values()]
    content = {**summarise(found, options.name), "settings": settings, "arms": arms}
    write_json(RESULTS / f"{options.name}.json", {**content, "manifest": manifest})


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What all arms of a seed share."""

    options: argparse.Namespace
    seed: int
    tokenizer: Tokenizer
    task: ProceduralTask
    train: TaskPrompts
    heldout: TaskPrompts

    def config(self, algorithm: AlgorithmConfig, lr: float) -> LoopConfig:
        """Return the loop's settings under an algorithm; all arms sample as many rollouts."""
        group = algorithm.advantage.group_size if algorithm.advantage else 1
        return LoopConfig(
            algorithm=algorithm,
            sampling=SamplingConfig(
                batch_prompts=ROLLOUTS // group, max_new_tokens=NEW_TOKENS, refill_rounds=0
            ),
            evaluation=EvaluationConfig(prompts=64 if self.options.quick else 128),
            update=UpdateConfig(lr=lr, row_tokens=128, optimizer=OptimizerConfig(weight_decay=0.0)),
            engine=ENGINE,
        )


class Policy:
    """A model that learns, and the engine that serves it."""

    def __init__(
        self, model: Transformer, algorithm: AlgorithmConfig, lesson: Lesson, lr: float
    ) -> None:
        """Train `model` in place."""
        self.model, self.config, self._lesson = model, lesson.config(algorithm, lr), lesson
        freeze_indexers(model)
        if model.mtp is not None:
            model.mtp.requires_grad_(False)
        self.learner = PolicyLearner(model, ComputeModel(model, torch.float32), self.config)
        self.updates = 0
        self.completer = EngineCompleter(Engine(model, ENGINE))

    async def learn(self, samples: Sequence[Sample]) -> None:
        """Take an update and serve what came out."""
        self.learner.train(samples, self.updates)
        self.updates += 1
        await self.completer.push(self.updates)

    async def examine(self) -> tuple[float, float]:
        """Return the pass rate on held-out problems and its standard error."""
        lesson = self._lesson
        prompts = [lesson.heldout.prompt(n) for n in range(self.config.evaluation.prompts)]
        examiner = Examiner(self.completer, prompts, self.config, lesson.seed)
        metrics = (await examiner.examine()).metrics
        return metrics["rl/eval_pass_rate"], metrics["rl/eval_pass_error"]


async def _run_seed(options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Prepare start and teacher, run the arms, and print a line for each."""
    tasks = {
        split: ProceduralTask(
            ProceduralConfig(
                skill=options.skill, levels=tuple(options.levels), split=split, seed=seed
            )
        )
        for split in ("train", "heldout")
    }
    model, tokenizer = _first_model(options, tasks["train"], seed)
    with Verifier(VerifierConfig()) as verifier:
        train, heldout = (TaskPrompts(task, tokenizer, verifier) for task in tasks.values())
        lesson = Lesson(options, seed, tokenizer, tasks["train"], train, heldout)
        start, teacher, levels = await _prepare(model, lesson)
        found = {}
        for arm in RATES:
            result = await _run_arm(arm, copy.deepcopy(start), teacher, lesson)
            found[arm] = {"arm": arm, "seed": seed, **levels, **result}
            found[arm]["gain"] = round(result["pass_rate"] - levels["start_pass_rate"], 4)
            print(json.dumps(found[arm]), flush=True)
    return found


def _first_model(
    options: argparse.Namespace, task: ProceduralTask, seed: int
) -> tuple[Transformer, Tokenizer]:
    """Return the checkpoint, or a `nano` model that has seen nothing."""
    if options.checkpoint is not None:
        return read_checkpoint(options.checkpoint).train(), load_tokenizer(options.checkpoint)
    texts = []
    for index in range(500):
        problem = task.problem(index)
        texts.append(problem.prompt[0].content)
        if problem.solution is not None:
            texts += [problem.solution.reasoning_content or "", problem.solution.content]
    tokenizer = Tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=448)))
    config = shape(
        "nano",
        vocab_size=tokenizer.vocab_size,
        num_nextn_predict_layers=0,
        max_position_embeddings=256,
        index_topk=256,
        eos_token_id=tokenizer.stop_ids,
    )
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    return model, tokenizer


def _solved(lesson: Lesson, update: int) -> list[Sample]:
    """Return the solved problems of fine-tuning step `update`."""
    samples = []
    for index in range(update * ROLLOUTS, (update + 1) * ROLLOUTS):
        problem = lesson.task.problem(index)
        assert problem.solution is not None, "procedural problems come solved"
        rendered = render((*problem.prompt, problem.solution), lesson.tokenizer, close=True)
        mask = np.array(rendered.loss_mask)
        samples.append(
            Sample(
                ids=np.array(rendered.ids, np.int64),
                loss_mask=mask,
                rollout_logprobs=np.zeros(len(mask), np.float32),
                versions=np.where(mask, 0, NOT_SAMPLED).astype(np.int32),
                group=problem.group,
                reward=None,
                advantages=mask.astype(float),
            )
        )
    return samples


async def _prepare(
    model: Transformer, lesson: Lesson
) -> tuple[Transformer, Transformer, dict[str, float]]:
    """Fine-tune to the start's level, and on to the teacher's; return both and their levels."""
    options = lesson.options
    start, levels = None, dict[str, float]()
    policy = Policy(model, FINE_TUNING, lesson, options.lr)
    while policy.updates < options.most_updates:
        await policy.learn(_solved(lesson, policy.updates))
        if policy.updates % 5:
            continue
        rate, error = await policy.examine()
        levels["teacher_pass_rate"] = round(rate, 4)
        if start is None and rate >= options.start:
            start = copy.deepcopy(model)
            levels |= {"start_pass_rate": round(rate, 4), "start_pass_error": round(error, 4)}
        if rate >= options.teacher:
            break
    assert start is not None, f"no pass rate of {options.start} within --most-updates"
    levels["fine_tuning_updates"] = policy.updates
    return start, model, levels


async def _run_arm(
    arm: str, student: Transformer, teacher: Transformer, lesson: Lesson
) -> dict[str, Any]:
    """Let a student learn for its CPU seconds."""
    algorithms = {"on_policy": distil(), "off_policy": FINE_TUNING, "rl": icepop(GROUP)}
    lr = getattr(lesson.options, f"lr_{arm}")
    tokens = batches = 0
    policy = Policy(student, algorithms[arm], lesson, lr)
    completer, annotate, is_judged = policy.completer, None, arm == "rl"
    if arm == "on_policy":
        pool = TeacherPool({"teacher": teacher}, {lesson.train.name: "teacher"}, ENGINE)
        annotate = pool.annotate
    elif arm == "off_policy":
        completer = EngineCompleter(Engine(teacher, ENGINE))
    # Whoever is not judged by rewards samples single rollouts, as distillation does.
    sampling = lesson.config(algorithms["rl" if is_judged else "on_policy"], lr)
    collector = Collector(
        completer,
        PromptStream([lesson.train], [1.0]),
        sampling,
        lesson.seed,
        annotate=annotate,
        needs_rewards=is_judged,
        asks_judges=is_judged,
    )
    begin, wall = time.process_time(), time.perf_counter()
    while time.process_time() - begin < lesson.options.seconds:
        collected = await collector.collect(0 if arm == "off_policy" else policy.updates)
        tokens += sum(rollout.sampled_tokens for rollout in collected.rollouts)
        batches += 1
        samples = collected.samples
        if arm == "off_policy":
            samples = [
                dataclasses.replace(s, advantages=s.loss_mask.astype(float)) for s in samples
            ]
        if arm == "off_policy" or collected.has_signal:
            await policy.learn(samples)
    cpu_seconds, wall = time.process_time() - begin, time.perf_counter() - wall
    rate, error = await policy.examine()
    return {
        "pass_rate": round(rate, 4),
        "pass_error": round(error, 4),
        "generated_tokens": tokens,
        "batches": batches,
        "updates": policy.updates,
        "cpu_seconds": round(cpu_seconds, 2),
        "wall_seconds": round(wall, 2),
    }


def summarise(found: Sequence[dict[str, dict[str, Any]]], title: str) -> dict[str, Any]:
    """Return medians over seeds; the ratio is that of the gains, a hundredth at least below it."""
    gains = {arm: [arms[arm]["gain"] for arms in found] for arm in RATES}
    ratios = [
        ours / max(peer, 0.01) for ours, peer in zip(gains["on_policy"], gains["rl"], strict=True)
    ]
    return {
        "name": title,
        "ratio": round(statistics.median(ratios), 3),
        "ours": round(100 * statistics.median(gains["on_policy"]), 1),
        "peer": round(100 * statistics.median(gains["rl"]), 1),
        "off_policy": round(100 * statistics.median(gains["off_policy"]), 1),
        "unit": "points gained",
        "pairs": len(found),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "generated_tokens": {
            arm: statistics.median(arms[arm]["generated_tokens"] for arms in found) for arm in RATES
        },
    }


if __name__ == "__main__":
    main()
