"""The chain of post-training learns, in seconds: a tiny model, two skills of ten facts each.

The solutions that fine-tuning sees are right in three of five cases, so that it leaves a model that
answers right less often than that; what lifts it from there is reward alone. The second skill is
the first one turned round, so that learning it unlearns the first. `benchmarks/nano_learning.py` is
the same at the size of the recipe.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fivefold.data.conversation_config import ConversationsConfig
from fivefold.envs.config import FunctionTaskConfig, SolvedConfig, TasksConfig
from fivefold.envs.stages import TasksStage
from fivefold.metrics import StageMetrics, read_metrics
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.rl.loop_config import (
    DistillConfig,
    EvaluationConfig,
    RecordConfig,
    RlConfig,
    SamplingConfig,
    SourceConfig,
    TeacherConfig,
    UpdateConfig,
)
from fivefold.rl.preset import icepop
from fivefold.rl.stages import DistillStage, RlStage
from fivefold.stage import ProgressTask, Selection, Stage, StageContext, run_stages
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.sft_config import SftConfig
from fivefold.train.stages import SftStage

SKILLS = """
LETTERS = "abcdefghij"


def row(asked, steps, index, taught):
    letter = LETTERS[index % 10]
    right = LETTERS[(index % 10 + steps) % 10]
    wrong = LETTERS[(index % 10 + steps + 1 + index // 50 % 8) % 10]
    known = right if index // 10 % 5 < 3 or not taught else wrong
    return {"prompt": asked + " " + letter, "verifier": "exact", "answer": right, "solution": known}


def up(index, seed):
    return row("up", 3, index, seed == 1)


def down(index, seed):
    return row("down", 7, index, seed == 1)
"""
TAUGHT = 400
OPTIMIZER = OptimizerConfig(ns_dtype="float32", weight_decay=0.0)
GAIN, FORGOTTEN, MARGIN = 0.25, 0.2, 0.05
"""Least gain by RL and least loss by RL on the other skill; most that the student may lack."""


class Bar:
    def advance(self, amount: float = 1, **shown: str) -> None:
        pass


@contextmanager
def track(description: str, total: float, unit: str) -> Iterator[ProgressTask]:
    yield Bar()


class Given(Stage):
    """A random model and its tokenizer, as `adapt_dsa` and `tokenizer` leave them."""

    config: SamplingConfig

    def execute(self, inputs: Any, out: Path, context: StageContext) -> None:
        text = "up a, down b, up c, down d, e f g h i j; no word but up and down is said here. "
        tokenizer = Tokenizer(train_tokenizer([text] * 9, TokenizerConfig(vocab_size=440)))
        shape = preset(
            "nano",
            vocab_size=tokenizer.vocab_size,
            hidden_size=64,
            num_hidden_layers=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=64,
            eos_token_id=tokenizer.stop_ids,
        )
        model = Transformer(shape)
        initialise(model, shape, torch.Generator().manual_seed(context.seed))
        write_checkpoint(model, out / "checkpoint")
        tokenizer.save_pretrained(out / "checkpoint")
        tokenizer.save_pretrained(out)


def chain(skills: Path) -> list[Stage]:
    """The stages of `recipes.nano_post`, smaller."""
    up, down = f"{skills}:up", f"{skills}:down"

    def examined(*also: str) -> EvaluationConfig:
        tasks = tuple(FunctionTaskConfig(target=target) for target in also)
        return EvaluationConfig(
            every_batches=100, prompts=40, rollouts=10, temperature=1.0, also=tasks
        )

    common = {
        "update": UpdateConfig(row_tokens=64, lr=3e-3, optimizer=OPTIMIZER),
        "record": RecordConfig(dumps_kept=0, checkpoint_batches=100),
    }

    def rl(skill: str, other: str, batches: int) -> RlConfig:
        source = SourceConfig(task=FunctionTaskConfig(target=skill))
        return RlConfig(
            sources=(source,),
            algorithm=icepop(8),
            batches=batches,
            sampling=SamplingConfig(
                batch_prompts=8, max_new_tokens=4, thinks=False, refill_rounds=0
            ),
            evaluation=examined(other),
            **common,
        )

    distill = DistillConfig(
        sources=(
            # More of the skill that is to come back.
            TeacherConfig(task=FunctionTaskConfig(target=up), teacher="teacher_a", weight=1.5),
            TeacherConfig(task=FunctionTaskConfig(target=down), teacher="teacher_b"),
        ),
        batches=160,
        sampling=SamplingConfig(batch_prompts=24, max_new_tokens=4, thinks=False),
        evaluation=examined(),
        **{**common, "update": UpdateConfig(row_tokens=64, lr=2e-3, optimizer=OPTIMIZER)},
    )
    solved = {
        name: SolvedConfig(
            task=FunctionTaskConfig(target=target, seed=1),
            problems=TAUGHT,
            heldout_problems=10,
            thinks=False,
        )
        for name, target in (("up", up), ("down", down))
    }
    sft = SftConfig(
        conversations=ConversationsConfig(context_tokens=48),
        epochs={"up": 3.0, "down": 3.0},
        batch_rows=8,
        microbatch_rows=8,
        kind="linear",
        peak_lr=1e-2,
        final_lr=1e-3,
        mtp_weight=0.0,
        validation_steps=1000,
        sample_count=0,
        optimizer=OPTIMIZER,
    )
    start = {"tokenizer": "given"}
    return [
        Given("given", SamplingConfig()),
        TasksStage("tasks", TasksConfig(sources=solved)),
        SftStage("sft", sft, {"start": "given", "conversations": "tasks", **start}),
        RlStage("rl_a", rl(up, down, 25), {"start": "sft", **start}),
        RlStage("rl_b", rl(down, up, 45), {"start": "rl_a", **start}),
        DistillStage(
            "distill",
            distill,
            {"start": "rl_b", "teacher_a": "rl_a", "teacher_b": "rl_b", **start},
        ),
    ]


class Story(NamedTuple):
    """What a chain's stages left."""

    rates: dict[str, list[dict[str, float]]]
    """Pass rates of both skills at each examination, by stage."""
    tokens: dict[str, int]
    """Tokens that a stage sampled to train on."""


def run_chain(run: Path, seed: int = 0) -> Story:
    """Run all stages."""
    (run / "skills.py").write_text(SKILLS)
    stages = chain(run / "skills.py")

    def context_of(stage: Stage) -> StageContext:
        metrics = StageMetrics(run / "metrics.jsonl", stage.name)
        return StageContext(seed, "cpu", 1, metrics, track)

    run_stages(stages, run, Selection(), context_of)
    rates: dict[str, list[dict[str, float]]] = {}
    tokens: dict[str, int] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        stage = record["stage"]
        if "rl/eval_pass_rate_up" in record:
            found = {skill: record[f"rl/eval_pass_rate_{skill}"] for skill in ("up", "down")}
            rates.setdefault(stage, []).append(found)
        if "rl/sampled_tokens" in record:
            tokens[stage] = tokens.get(stage, 0) + record["rl/sampled_tokens"]
    return Story(rates, tokens)


def check_story(story: Story) -> None:
    """Both skills are half known, each expert gains its own, and the last model has both."""
    start = story.rates["rl_a"][0]
    rl_a, rl_b, distill = (story.rates[name][-1] for name in ("rl_a", "rl_b", "distill"))
    rl_tokens = story.tokens["rl_a"] + story.tokens["rl_b"]
    ratio = rl_tokens / story.tokens["distill"]
    print(f"start {start}, RL on up {rl_a}, RL on down {rl_b}, distilled {distill}")
    print(f"tokens generated by RL over those by distillation: {ratio:.2f} (published: 9-30)")
    assert 0.2 <= start["up"] <= 0.65, "nothing to reward, or nothing to gain"
    assert 0.2 <= start["down"] <= 0.65, "nothing to reward, or nothing to gain"
    assert rl_a["up"] - start["up"] >= GAIN, "RL on A teaches A"
    assert rl_b["down"] - rl_a["down"] >= GAIN, "RL on B teaches B"
    assert rl_a["up"] - rl_b["up"] >= FORGOTTEN, "RL on B forgets of A"
    assert rl_a["up"] - distill["up"] <= MARGIN, "distillation recovers A from its teacher"
    assert rl_b["down"] - distill["down"] <= MARGIN, "distillation keeps B of its teacher"
    assert distill["up"] - rl_b["up"] >= FORGOTTEN, "what comes back had been lost"
    assert ratio > 1, "distillation samples less than RL did"


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_two_experts_learn_and_their_student_knows_both(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    check_story(run_chain(tmp_path, seed))
    frozen = [read_checkpoint(tmp_path / name / "checkpoint") for name in ("given", "distill")]
    before, after = (model.state_dict() for model in frozen)
    assert all(torch.equal(before[n], after[n]) for n in before if ".indexer." in n)


TOLD = Story(
    {
        "rl_a": [{"up": 0.4, "down": 0.4}, {"up": 0.9, "down": 0.2}],
        "rl_b": [{"up": 0.9, "down": 0.2}, {"up": 0.2, "down": 0.9}],
        "distill": [{"up": 0.2, "down": 0.9}, {"up": 0.87, "down": 0.87}],
    },
    {"rl_a": 100, "rl_b": 100, "distill": 90},
)


@pytest.mark.parametrize(
    ("stage", "skill", "value", "why"),
    [
        ("rl_a", "up", 0.6, "RL on A"),
        ("rl_b", "down", 0.4, "RL on B teaches"),
        ("rl_b", "up", 0.8, "RL on B forgets"),
        ("distill", "up", 0.75, "recovers A"),
        ("distill", "down", 0.75, "keeps B"),
        ("distill", "tokens", 210, "samples less"),
    ],
)
def test_story_that_did_not_happen_is_not_believed(
    stage: str, skill: str, value: float, why: str
) -> None:
    check_story(TOLD)
    changed = Story(
        {name: [dict(rates) for rates in found] for name, found in TOLD.rates.items()},
        dict(TOLD.tokens),
    )
    if skill == "tokens":
        changed.tokens[stage] = int(value)
    else:
        changed.rates[stage][-1][skill] = value
    with pytest.raises(AssertionError, match=why):
        check_story(changed)
