"""A tiny policy, prompts of two ids, and a judge that wants one token: RL within seconds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fivefold.metrics import StageMetrics
from fivefold.models.config import ModelConfig
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset as shape
from fivefold.models.transformer import Transformer
from fivefold.rl import preset
from fivefold.rl.config import AdvantageConfig
from fivefold.rl.loop_config import (
    EvaluationConfig,
    LoopConfig,
    RecordConfig,
    SamplingConfig,
    UpdateConfig,
)
from fivefold.rl.progress import Progress
from fivefold.rl.prompt import Judgement, Prompt
from fivefold.rl.reinforce import Supply, Teaching, train_policy
from fivefold.serve.config import EngineConfig
from fivefold.stage import ProgressTask, StageContext
from fivefold.train.optimizer_config import OptimizerConfig

WORDS = 16
TOKENS = 4
ENGINE = EngineConfig(block_tokens=4, pool_tokens=2048, step_tokens=256, most_running=64)


class KilledError(Exception):
    """Stands for the end of a process."""


def toy_config(batches: int = 4, **fields: Any) -> LoopConfig:
    icepop = preset.icepop(group_size=4)
    whole: dict[str, Any] = {
        "algorithm": icepop.model_copy(
            update={"advantage": AdvantageConfig(group_size=4, method="mean")}
        ),
        "batches": batches,
        "sampling": SamplingConfig(batch_prompts=4, max_new_tokens=TOKENS),
        "evaluation": EvaluationConfig(prompts=0),
        "update": UpdateConfig(
            lr=3e-3,
            row_tokens=16,
            optimizer=OptimizerConfig(ns_dtype="float32", weight_decay=0.0),
        ),
        "record": RecordConfig(checkpoint_batches=2),
        "engine": ENGINE,
    }
    return LoopConfig(**(whole | fields))


def toy_model(seed: int = 0, **fields: Any) -> Transformer:
    small = {
        "num_hidden_layers": 2,
        "vocab_size": WORDS,
        "hidden_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "index_topk": 4,
        "initializer_range": 0.05,
        "eos_token_id": (),
    }
    config: ModelConfig = shape("nano", **(small | fields))
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    return model


def wants(word: int) -> Callable[[Sequence[int]], float]:
    """Return a reward: the share of a response that is this word."""
    return lambda ids: sum(token == word for token in ids) / len(ids)


class ToySource:
    """Prompts [n mod WORDS, mark], judged by a function of the response."""

    def __init__(
        self,
        reward: Callable[[Sequence[int]], float | None] | None = None,
        name: str = "toy",
        mark: int = 1,
    ) -> None:
        self.name, self._reward, self._mark = name, reward or wants(7), mark

    def prompt(self, index: int) -> Prompt:
        return Prompt((index % WORDS, self._mark), f"{self.name}#{index}", self.name, self._judge)

    async def _judge(self, response: Sequence[int]) -> Judgement:
        value = self._reward(response)
        return Judgement(value, "infra" if value is None else "scored")


def supply_of(*sources: ToySource, heldout: int = 0) -> Supply:
    prompts = [source.prompt(1000 + n) for source in sources for n in range(heldout)]
    return Supply(sources, [1.0] * len(sources), prompts, lambda ids: " ".join(map(str, ids)))


class Bar:
    """Progress that ends the process after so many batches."""

    def __init__(self, batches: float) -> None:
        self.left = batches

    def advance(self, amount: float = 1, **shown: str) -> None:
        self.left -= amount if shown else 0
        if self.left < 0:
            raise KilledError


def context_of(directory: Path, seed: int = 0, dies_after: float = float("inf")) -> StageContext:
    @contextmanager
    def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield Bar(dies_after)

    directory.mkdir(parents=True, exist_ok=True)
    return StageContext(seed, "cpu", 1, StageMetrics(directory / "metrics.jsonl", "rl"), track)


def run_toy(
    directory: Path,
    config: LoopConfig,
    supply: Supply | None = None,
    *,
    seed: int = 0,
    model: Transformer | None = None,
    teaching: Teaching | None = None,
    dies_after: float = float("inf"),
) -> tuple[Transformer, Progress]:
    torch.set_num_threads(1)
    model = model if model is not None else toy_model(seed)
    supply = supply or supply_of(ToySource())
    context = context_of(directory, seed, dies_after)
    progress = train_policy(model, supply, config, context, directory, teaching)
    return model, progress
