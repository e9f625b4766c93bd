"""Distillation: two teachers with a skill each, one student that has both in the end."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import ENGINE, TOKENS, ToySource, run_toy, supply_of, toy_config, toy_model, wants

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.metrics import read_metrics
from fivefold.models.stable import stable_forward, stable_logprobs
from fivefold.models.transformer import Transformer
from fivefold.rl import preset
from fivefold.rl.collect import Collected
from fivefold.rl.config import AlgorithmConfig, DistillationConfig
from fivefold.rl.loop_config import DistillConfig, EvaluationConfig, LoopConfig, SamplingConfig
from fivefold.rl.prompt import PromptStream
from fivefold.rl.reinforce import Supply, Teaching
from fivefold.rl.rollout import Rollout
from fivefold.rl.sample import NOT_SAMPLED
from fivefold.rl.teacher import TeacherPool, measure_gap

SOURCES = ToySource(wants(7), "a", 1), ToySource(wants(3), "b", 2)
DETERMINISTIC = ENGINE.model_copy(update={"deterministic": True})


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transformer]:
    """Return two policies that RL has taught one task each."""
    root = tmp_path_factory.mktemp("teachers")
    return {
        source.name: run_toy(root / source.name, toy_config(20), supply_of(source))[0]
        for source in SOURCES
    }


def both(heldout: int = 0) -> Supply:
    return supply_of(*SOURCES, heldout=heldout)


def pool_of(teachers: dict[str, Transformer], **fields: object) -> Teaching:
    engine = ENGINE.model_copy(update=fields)
    pool = TeacherPool(teachers, {"a": "a", "b": "b"}, engine)
    return Teaching(pool.annotate, measure_gap)


def distil_config(batches: int, **fields: object) -> LoopConfig:
    whole: dict = {
        "algorithm": preset.distil(),
        "sampling": SamplingConfig(batch_prompts=16, max_new_tokens=TOKENS),
    }
    config = toy_config(batches, **(whole | fields))
    faster = config.update.model_copy(update={"lr": 6e-3})
    return config.model_copy(update={"update": faster})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_student_reaches_both_teachers(
    seed: int, teachers: dict[str, Transformer], tmp_path: Path
) -> None:
    evaluation = EvaluationConfig(prompts=8, every_batches=20, temperature=1.0)
    config = distil_config(20, evaluation=evaluation)
    _, progress = run_toy(tmp_path, config, both(8), seed=seed, teaching=pool_of(teachers))
    assert progress.counts["kept"] == 20 * 16
    records = read_metrics(tmp_path / "metrics.jsonl")
    for name in ("a", "b"):
        key = f"rl/teacher_kl_nats_{name}"
        gaps = [record[key] for record in records if key in record]
        assert np.mean(gaps[-4:]) < 0.3 * np.mean(gaps[:3])
        rewards = [r for r in records if f"rl/eval_reward_mean_{name}" in r]
        assert rewards[0][f"rl/eval_reward_mean_{name}"] < 0.3
        assert rewards[-1][f"rl/eval_reward_mean_{name}"] > 0.8


def test_two_forms_of_the_advantage_train_differently(
    teachers: dict[str, Transformer], tmp_path: Path
) -> None:
    outcomes = []
    for discount in (0.0, 1.0):
        algorithm = AlgorithmConfig(
            advantage=None, distillation=DistillationConfig(discount=discount)
        )
        config = distil_config(2, algorithm=algorithm)
        run = tmp_path / str(discount)
        outcomes.append(run_toy(run, config, both(), teaching=pool_of(teachers))[0])
    assert not torch.equal(outcomes[0].lm_head.weight, outcomes[1].lm_head.weight)


def test_same_seed_gives_the_same_student_bit_for_bit(
    teachers: dict[str, Transformer], tmp_path: Path
) -> None:
    runs = [
        run_toy(tmp_path / name, distil_config(3), both(), teaching=pool_of(teachers))[0]
        for name in ("one", "two")
    ]
    ours, theirs = (run.state_dict() for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    config = distil_config(1, engine=DETERMINISTIC)
    model = toy_model(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twins = {"a": toy_model(4), "b": toy_model(4)}
    run_toy(tmp_path, config, both(), model=model, teaching=pool_of(twins, deterministic=True))
    (record,) = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "rl/loss" in r]
    assert record["rl/teacher_kl_nats"] == 0
    assert record["rl/teacher_kl_nats_a"] == 0
    assert record["rl/gradient_norm"] == 0
    assert record["rl/loss"] == 0
    # AdamW and Muon do not move without a gradient.
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def rollout_of(source: str, ids: list[int], prompt: int = 2) -> Rollout:
    mask = np.arange(len(ids)) >= prompt
    return Rollout(
        ids=np.array(ids),
        loss_mask=mask,
        rollout_logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        versions=np.where(mask, 0, NOT_SAMPLED).astype(np.int32),
        group=f"{source}#{ids}",
        reward=None,
        source=source,
        prompt_tokens=prompt,
    )


def test_each_source_is_scored_by_its_own_teacher() -> None:
    models = {"a": toy_model(1), "b": toy_model(2)}
    pool = TeacherPool(models, {"a": "a", "b": "b"}, DETERMINISTIC)
    rollouts = [
        rollout_of("b", [3, 2, 5, 9]),
        rollout_of("a", [1, 1, 4]),
        rollout_of("b", [3, 2, 5]),
    ]

    found = asyncio.run(pool.annotate(rollouts))
    for before, after in zip(rollouts, found, strict=True):
        model = models[before.source]
        ids = torch.from_numpy(before.ids)[None]
        with torch.no_grad():
            expected = stable_logprobs(model, stable_forward(model, ids).hidden_BTD, ids)[0]
        assert after.teacher_logprobs is not None
        np.testing.assert_array_equal(after.teacher_logprobs[1:], expected.numpy())
        assert after.teacher_logprobs[0] == 0
    gap = measure_gap(Collected([], found))
    means = [
        np.mean(r.rollout_logprobs[2:] - r.teacher_logprobs[2:])
        for r in found
        if r.teacher_logprobs is not None
    ]
    assert gap["rl/teacher_kl_nats_a"] == pytest.approx(means[1], rel=1e-6)
    assert gap["rl/teacher_kl_nats_b"] == pytest.approx((2 * means[0] + means[2]) / 3, rel=1e-6)


def test_source_shares_follow_the_weights() -> None:
    stream = PromptStream(SOURCES, [3.0, 1.0])
    stream.draw(400)
    assert stream.drawn == {"a": 300, "b": 100}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"sampling": {"temperature": 0.9}}, "temperature"),
        ({"algorithm": preset.icepop(2).model_dump()}, "one without"),
    ],
)
def test_configs_that_cannot_distil_are_refused(fields: dict, match: str) -> None:
    task = {"kind": "procedural", "skill": "copy"}
    document = {"sources": [{"task": task, "teacher": "t"}], **fields}
    with pytest.raises(ConfigError, match=match):
        validate(DistillConfig, document, where="distill")
