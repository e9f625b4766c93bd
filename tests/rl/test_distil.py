"""Distillation: two teachers with a skill each, one student that has both in the end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
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
from fivefold.rl.teacher import (
    TeacherFaultError,
    TeacherPool,
    measure_gap,
    nonfinite_tokens,
)
from fivefold.rl.teacher_config import TeacherFaultConfig
from fivefold.serve.config import EngineConfig

SOURCES = ToySource(wants(7), "a", 1), ToySource(wants(3), "b", 2)
DETERMINISTIC = ENGINE.model_copy(update={"deterministic": True})
SPOILT = TeacherFaultConfig(most_nonfinite_share=1.0)
"""Goes on whatever a teacher says."""


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


@pytest.mark.parametrize("engine", [ENGINE, DETERMINISTIC], ids=["fast", "deterministic"])
def test_tokens_without_a_finite_logprob_of_the_teacher_do_not_train(engine: EngineConfig) -> None:
    """A word that a teacher overflows at spoils what comes after it, and no other rollout."""
    pool = TeacherPool({"t": overflowing(9)}, {"a": "t"}, engine, SPOILT)
    rows = [[3, 2, 5, 9, 1, 2], [1, 1, 4, 9], [2, 9, 3, 3], [4, 4, 4, 4, 4, 4, 4], [5, 6, 7]]
    # Twice: blocks that held what is not finite are used again.
    found = asyncio.run(pool.annotate([rollout_of("a", row) for row in (*rows, *rows)]))
    for row, rollout in zip((*rows, *rows), found, strict=True):
        spoilt = nonfinite_tokens(rollout)
        sampled = np.arange(len(row)) >= 2
        np.testing.assert_array_equal(rollout.loss_mask, sampled & ~spoilt)
        after = sampled & (np.cumsum(np.array(row) == 9) - (np.array(row) == 9) > 0)
        # A fused kernel multiplies what it has masked by 0, so that NaN reaches back in its row.
        is_exact = engine.deterministic or 9 not in row
        assert (spoilt == after).all() if is_exact else (spoilt >= after).all()
    gap = measure_gap(Collected([], found))
    assert gap["rl/teacher_nonfinite_tokens"] == sum(nonfinite_tokens(r).sum() for r in found) > 0
    assert np.isfinite(gap["rl/teacher_kl_nats_a"])


def overflowing(word: int) -> Transformer:
    """Return a teacher that attends to all before a token, so that none escapes."""
    model = toy_model(4, index_topk=64)
    with torch.no_grad():
        model.embed_tokens.weight[word] = torch.nan
    return model


def test_training_past_a_broken_teacher_is_training_without_those_tokens(tmp_path: Path) -> None:
    config = distil_config(3, engine=DETERMINISTIC)
    owners = {"a": "t", "b": "t"}
    broken = TeacherPool({"t": overflowing(9)}, owners, DETERMINISTIC, SPOILT)
    whole = TeacherPool({"t": toy_model(4, index_topk=64)}, owners, DETERMINISTIC)

    async def annotate(rollouts: Sequence[Rollout]) -> list[Rollout]:
        masked = []
        for rollout in await whole.annotate(rollouts):
            spoilt = np.cumsum(rollout.ids == 9) - (rollout.ids == 9) > 0
            masked.append(replace(rollout, loss_mask=rollout.loss_mask & ~spoilt))
        return masked

    runs = {"broken": Teaching(broken.annotate, measure_gap), "masked": Teaching(annotate)}
    models = {
        name: run_toy(tmp_path / name, config, both(), teaching=teaching)[0].state_dict()
        for name, teaching in runs.items()
    }
    assert all(torch.equal(models["broken"][n], models["masked"][n]) for n in models["broken"])
    records = [r for r in read_metrics(tmp_path / "broken" / "metrics.jsonl") if "rl/loss" in r]
    assert len(records) == 3
    assert all(r["rl/teacher_nonfinite_tokens"] > 0 for r in records)
    assert all(np.isfinite(r["rl/loss"]) and r["rl/skipped_updates"] == 0 for r in records)


def test_teacher_that_fails_too_often_ends_the_run(tmp_path: Path) -> None:
    # Every prompt of `b` ends with this word.
    teachers = {"good": toy_model(5), "bad": overflowing(2)}
    pool = TeacherPool(teachers, {"a": "good", "b": "bad"}, ENGINE)
    teaching = Teaching(pool.annotate, measure_gap)
    with pytest.raises(TeacherFaultError, match=r"teacher `bad`, but for 1\.00%.*32 of 32"):
        run_toy(tmp_path, distil_config(1), both(), teaching=teaching)


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
