"""The stage `rl`, and what it shares with `distill`: from directories to players, and back.

Indexers are frozen (GLM-5 report, section 3.2), and so is the MTP layer, which no policy gradient
reaches. The engine serves the weights that the trainer computes with: a push is a new version
and derived weights made anew.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fivefold.envs.config import ProceduralConfig, TaskConfig
from fivefold.envs.open_task import open_task
from fivefold.envs.task import Task
from fivefold.errors import ConfigError
from fivefold.models.convert import write_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.rl.collect import Annotate, Collected, Collector
from fivefold.rl.examine import Examiner
from fivefold.rl.learner import PolicyLearner
from fivefold.rl.loop import Players, resume, run_loop
from fivefold.rl.loop_config import LoopConfig, RlConfig, SourceConfig
from fivefold.rl.progress import Progress
from fivefold.rl.prompt import Prompt, PromptSource, PromptStream
from fivefold.rl.rollout import Completer, EngineCompleter
from fivefold.rl.server_completer import ServerCompleter
from fivefold.rl.task_prompt import FAR_AHEAD, TaskPrompts
from fivefold.serve.config import EngineConfig
from fivefold.serve.engine import Engine
from fivefold.stage import StageContext
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.compute import ComputeModel
from fivefold.train.pretrain import freeze_indexers
from fivefold.train.sft import check_template
from fivefold.train.start import start_from
from fivefold.verify.verifier import Verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supply:
    """What a policy is trained and examined on."""

    sources: Sequence[PromptSource]
    weights: Sequence[float]
    heldout: Sequence[Prompt]
    decode: Callable[[Sequence[int]], str]
    """Ids to text, for the report."""


@dataclass(frozen=True)
class Teaching:
    """What a teacher adds to the loop; without one, rewards alone count."""

    annotate: Annotate | None = None
    measure: Callable[[Collected], dict[str, float]] = lambda _: {}
    asks_judges: bool = True
    """Are rollouts judged by rewards too, be it for the record alone?"""


def reinforce(
    config: RlConfig, inputs: Mapping[str, Path], out: Path, context: StageContext
) -> None:
    """Train `inputs["start"]` by rewards; writes `out/checkpoint`.

    Raises:
        MismatchError: the checkpoint has another tokenizer or chat template.
        ConfigError: a task that cannot be opened, prompts that do not fit.
        NoSignalError, DivergenceError: nothing to learn from, or too much.
    """
    model, tokenizer = open_policy(config, inputs, context)
    with Verifier(config.verifier) as verifier:
        supply = open_supply(config.sources, config, tokenizer, verifier)
        train_policy(model, supply, config, context, out)
        logger.info("verdicts: %s", dict(verifier.counts))
    write_policy(model, tokenizer, out)


def open_policy(
    config: LoopConfig, inputs: Mapping[str, Path], context: StageContext
) -> tuple[Transformer, Tokenizer]:
    """Load the start checkpoint and its tokenizer."""
    tokens = config.sampling.max_new_tokens + 1
    model, tokenizer = start_from(
        inputs["start"], inputs["tokenizer"], context, longest_tokens=tokens
    )
    check_template(inputs["start"] / "checkpoint")
    return model, tokenizer


def open_supply(
    sources: Sequence[SourceConfig], config: LoopConfig, tokenizer: Tokenizer, verifier: Verifier
) -> Supply:
    """Open the tasks of a stage, and choose the held-out prompts.

    Raises:
        ConfigError: a finite task without held-out problems.
    """
    thinks = config.sampling.thinks
    opened, heldout, names = list[TaskPrompts](), list[Prompt](), set[str]()
    for source in sources:
        task = open_task(source.task)
        name = _free_name(task.name, names)
        names.add(name)
        opened.append(TaskPrompts(task, tokenizer, verifier, name=name, thinks=thinks))
        if config.evaluation.prompts:
            held, begin = _heldout(source, task.size)
            exam = open_task(held)
            prompts = TaskPrompts(exam, tokenizer, verifier, name=name, thinks=thinks, begin=begin)
            heldout += [prompts.prompt(index) for index in range(_exam_size(config, exam))]
    if config.evaluation.prompts:
        heldout += _also_examined(config, tokenizer, verifier, names)
    return Supply(opened, [source.weight for source in sources], heldout, tokenizer.decode)


def _free_name(name: str, taken: Container[str]) -> str:
    """Return a source's name, numbered where others have it."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _exam_size(config: LoopConfig, task: Task) -> int:
    """Return how many problems to ask: none twice, for copies say nothing new."""
    return min(config.evaluation.prompts, task.size or config.evaluation.prompts)


def _also_examined(
    config: LoopConfig, tokenizer: Tokenizer, verifier: Verifier, taken: Container[str]
) -> list[Prompt]:
    """Return prompts of the tasks that are examined and do not train.

    Raises:
        ConfigError: one has the name of another.
    """
    prompts, names = list[Prompt](), set[str]()
    for chosen in config.evaluation.also:
        task = open_task(chosen)
        if task.name in taken or task.name in names:
            raise ConfigError(
                expected="other tasks in `evaluation.also` than those that train, each once",
                found=f"`{task.name}` again",
                fix="Leave it out: what trains is examined anyway",
            )
        names.add(task.name)
        source = TaskPrompts(task, tokenizer, verifier, thinks=config.sampling.thinks)
        prompts += [source.prompt(index) for index in range(_exam_size(config, task))]
    return prompts


def _heldout(source: SourceConfig, size: int | None) -> tuple[TaskConfig, int]:
    """Return the task of the held-out problems, and where they begin."""
    if source.heldout is not None:
        return source.heldout, 0
    if isinstance(source.task, ProceduralConfig) and source.task.split == "train":
        levels = {"split": "heldout", "problems_per_level": 0}
        return source.task.model_copy(update=levels), 0
    if size is None:
        return source.task, FAR_AHEAD
    raise ConfigError(
        expected="`heldout` beside a task with a limited number of problems",
        found=f"a task of {size} problems, all of which train",
        fix="Give other problems as `heldout`, or set `evaluation.prompts` to 0",
    )


def train_policy(
    model: Transformer,
    supply: Supply,
    config: LoopConfig,
    context: StageContext,
    out: Path,
    teaching: Teaching | None = None,
) -> Progress:
    """Run the loop on a model, from the last saved state in `out` if there is one."""
    freeze_indexers(model)
    if model.mtp is not None:
        model.mtp.requires_grad_(False)
    update = config.update
    dtype = getattr(torch, update.compute_dtype)
    compute = ComputeModel(model, dtype, recompute=update.recompute)
    learner = PolicyLearner(model, compute, config)
    progress = resume(learner, out / "state" / "training")
    return asyncio.run(_run(learner, supply, config, context, out, progress, teaching))


async def _run(
    learner: PolicyLearner,
    supply: Supply,
    config: LoopConfig,
    context: StageContext,
    out: Path,
    progress: Progress,
    teaching: Teaching | None,
) -> Progress:
    teaching = teaching or Teaching()
    # Only experts that the engine has computed itself can be replayed.
    shares = config.engine.shares_prefixes and not config.sampling.replays_routing
    settings = config.engine.model_copy(update={"shares_prefixes": shares})
    async with _open_completer(config, settings, learner.compute.model, out) as completer:
        return await _run_with(completer, learner, supply, config, context, out, progress, teaching)


@contextlib.asynccontextmanager
async def _open_completer(
    config: LoopConfig, engine: EngineConfig, model: Transformer, out: Path
) -> AsyncIterator[Completer]:
    if not config.rollout.url:
        yield EngineCompleter(Engine(model, engine))
        return
    async with ServerCompleter(config.rollout, model, out / "state") as completer:
        yield completer


async def _run_with(
    completer: Completer,
    learner: PolicyLearner,
    supply: Supply,
    config: LoopConfig,
    context: StageContext,
    out: Path,
    progress: Progress,
    teaching: Teaching,
) -> Progress:
    needs_rewards = config.needs_rewards
    beside = {p.source for p in supply.heldout} - {source.name for source in supply.sources}
    collector = Collector(
        completer,
        PromptStream(supply.sources, supply.weights),
        config,
        context.seed,
        annotate=teaching.annotate,
        needs_rewards=needs_rewards,
        asks_judges=needs_rewards or teaching.asks_judges,
    )
    players = Players(
        learner,
        completer,
        collector,
        Examiner(completer, supply.heldout, config, context.seed, beside=beside),
        supply.decode,
        teaching.measure,
    )
    return await run_loop(players, config, context, out, progress)


def write_policy(model: Transformer, tokenizer: Tokenizer, out: Path) -> None:
    """Write `out/checkpoint`, a whole Hugging Face directory."""
    write_checkpoint(model, out / "checkpoint")
    tokenizer.save_pretrained(out / "checkpoint")
