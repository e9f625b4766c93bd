"""The loop as a whole: it learns, agrees with its engine, and is a function of its seed alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from toy import (
    ENGINE,
    KilledError,
    ToySource,
    run_toy,
    supply_of,
    toy_config,
    toy_model,
    wants,
)

from fivefold.errors import DivergenceError, MismatchError
from fivefold.metrics import read_metrics
from fivefold.models.transformer import Transformer
from fivefold.rl.config import AdvantageConfig
from fivefold.rl.loop_config import (
    EvaluationConfig,
    LoopConfig,
    RecordConfig,
    SamplingConfig,
    UpdateConfig,
)
from fivefold.rl.progress import Progress
from fivefold.rl.reason import UnjudgedError
from fivefold.rl.reinforce import Supply
from fivefold.rl.rollout import EngineFailedError
from fivefold.train.checkpoint import load_state
from fivefold.train.optimizer import HybridOptimizer
from fivefold.verify.verdict import LARGEST

CLOCKS = {"time_seconds", "rl/sample_seconds", "rl/train_seconds"}
DETERMINISTIC = ENGINE.model_copy(update={"deterministic": True})


def update(**fields: object) -> UpdateConfig:
    return toy_config().update.model_copy(update=fields)


def sampling(**fields: object) -> SamplingConfig:
    return toy_config().sampling.model_copy(update=fields)


def records(directory: Path) -> list[dict]:
    found = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in found]


def values_of(directory: Path, name: str) -> list[float]:
    return [record[name] for record in records(directory) if name in record]


def assert_equal_weights(one: Transformer, other: Transformer) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reward_rises_on_a_trivial_task(seed: int, tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(16), seed=seed)
    rewards = values_of(tmp_path, "rl/reward_mean")
    assert np.mean(rewards[:3]) < 0.2
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rho_is_exactly_one_in_deterministic_mode(temperature: float, tmp_path: Path) -> None:
    config = toy_config(4, engine=DETERMINISTIC, sampling=sampling(temperature=temperature))
    before = toy_model().state_dict()
    model, progress = run_toy(tmp_path, config)
    assert progress.version == 4
    assert values_of(tmp_path, "rl/rho_exact_fraction") == [1.0] * 4
    assert values_of(tmp_path, "rl/rho_largest_log_nats") == [0.0] * 4
    assert values_of(tmp_path, "rl/rho_mean") == [1.0] * 4
    # The policies that agree are different ones each time.
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rho_is_one_but_for_rounding_in_the_fast_mode(temperature: float, tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(4, sampling=sampling(temperature=temperature)))
    assert max(values_of(tmp_path, "rl/rho_largest_log_nats")) < 1e-4


def test_stale_engine_shows_in_rho(tmp_path: Path) -> None:
    # Two updates on a batch: the second one's policy is no longer the one that sampled.
    run_toy(tmp_path, toy_config(2, update=update(updates_per_batch=2)))
    assert max(values_of(tmp_path, "rl/rho_largest_log_nats")) < 1e-4
    assert all(kl > 0 for kl in values_of(tmp_path, "rl/policy_kl_nats"))
    run_toy(tmp_path / "one", toy_config(2))
    assert values_of(tmp_path / "one", "rl/policy_kl_nats") == [0.0, 0.0]


def test_several_updates_each_take_groups_of_their_own(tmp_path: Path) -> None:
    _, progress = run_toy(tmp_path, toy_config(3, update=update(updates_per_batch=4)))
    assert progress.version == 3
    assert progress.updates == 12


@pytest.mark.parametrize(
    "fields",
    [{}, {"engine": DETERMINISTIC}, {"sampling": sampling(replays_routing=True)}],
    ids=["fast", "deterministic", "replay"],
)
def test_same_seed_gives_the_same_run_bit_for_bit(fields: dict, tmp_path: Path) -> None:
    config = toy_config(3, **fields)
    one, _ = run_toy(tmp_path / "one", config, model=toy_model(0))
    two, _ = run_toy(tmp_path / "two", config, model=toy_model(0))
    assert_equal_weights(one, two)
    assert records(tmp_path / "one") == records(tmp_path / "two")
    other, _ = run_toy(tmp_path / "other", config, model=toy_model(0), seed=1)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def resumable(**fields: object) -> LoopConfig:
    return toy_config(
        7,
        record=RecordConfig(checkpoint_batches=3),
        evaluation=EvaluationConfig(prompts=3, every_batches=2),
        **fields,
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"update": update(optimizer_reset="each_push", updates_per_batch=2)}],
    ids=["plain", "reset"],
)
def test_killed_run_goes_on_bit_for_bit(fields: dict, tmp_path: Path) -> None:
    config = resumable(**fields)
    sources = (ToySource(wants(7)), ToySource(wants(3), "other"))
    supply = supply_of(*sources, heldout=3)
    whole, end = run_toy(tmp_path / "whole", config, supply)
    for batches in (1, 3, 3):  # dies in batch 2, with nothing saved; in 4, 3 saved; in 7, 6 saved
        with pytest.raises(KilledError):
            run_toy(tmp_path / "cut", config, supply, dies_after=batches)
    resumed, again = run_toy(tmp_path / "cut", config, supply, model=toy_model(5))
    assert_equal_weights(whole, resumed)
    assert again == end
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    finished = Progress.model_validate(end.model_dump())
    assert finished.drawn["toy"] + finished.drawn["other"] == finished.counts["drawn"]


class Heldout:
    """Held-out prompts whose judge fails from some examination on."""

    def __init__(self, prompts: int, fails_after: float) -> None:
        self.left = prompts * fails_after
        self.source = ToySource(self._reward, "held")
        self.prompts = [self.source.prompt(n) for n in range(prompts)]

    def _reward(self, ids: Sequence[int]) -> float | None:
        self.left -= 1
        return None if self.left < 0 else wants(7)(ids)


@pytest.mark.parametrize("fails_after", [0, 1, 2, 3])
def test_examination_that_fails_costs_nothing_that_was_trained(
    fails_after: int, tmp_path: Path
) -> None:
    """Examined are batches 0, 2, 4 and 5, and saved 2, 4 and 5."""
    config = toy_config(
        5,
        evaluation=EvaluationConfig(prompts=3, every_batches=2),
        sampling=sampling(unjudged_limit=2),
    )

    def supply(fails_after: float) -> Supply:
        return replace(supply_of(ToySource()), heldout=Heldout(3, fails_after).prompts)

    whole, end = run_toy(tmp_path / "whole", config, supply(float("inf")))
    with pytest.raises(UnjudgedError, match="2 of the first"):
        run_toy(tmp_path / "cut", config, supply(fails_after))
    saved = [int(path.name[5:]) for path in (tmp_path / "cut").glob("state/training/step_*")]
    assert max(saved, default=0) == [0, 2, 4, 5][fails_after]
    page = tmp_path / "cut" / "page"
    reasons = json.loads((page / "52_heldout_reasons.json").read_text())
    assert reasons["rows"] == [["infra: ", 3]]
    assert dict(json.loads((page / "50_counts.json").read_text())["rows"])["batches"] == max(
        saved, default=0
    )
    # Without a saved state the model is the first one again.
    model = toy_model(5 if saved else 0)
    resumed, again = run_toy(tmp_path / "cut", config, supply(float("inf")), model=model)
    assert_equal_weights(whole, resumed)
    assert again == end
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_page_of_a_run_whose_judge_fails_says_why(tmp_path: Path) -> None:
    config = toy_config(2, sampling=sampling(unjudged_limit=2))
    with pytest.raises(UnjudgedError):
        run_toy(tmp_path, config, supply_of(ToySource(lambda ids: None)))
    reasons = json.loads((tmp_path / "page" / "51_reasons.json").read_text())
    assert reasons["rows"] == [["infra: ", 16]]


def test_tokens_outside_are_those_outside_the_window_of_the_algorithm(tmp_path: Path) -> None:
    """The fast engine differs by rounding: a window of 1 alone keeps what is exactly 1."""
    algorithm = toy_config().algorithm
    loss = algorithm.loss.model_copy(update={"beta": 1.0})
    config = toy_config(2, algorithm=algorithm.model_copy(update={"loss": loss}))
    for updates in (1, 2):
        run_toy(tmp_path / str(updates), config.model_copy(update={"update": update(
            updates_per_batch=updates)}))  # fmt: skip
        outside = values_of(tmp_path / str(updates), "rl/rho_outside_fraction")
        exact = values_of(tmp_path / str(updates), "rl/rho_exact_fraction")
        assert outside == pytest.approx([1 - share for share in exact])
        assert min(outside) > 0.1


def test_state_of_other_sources_is_refused(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(2))
    with pytest.raises(MismatchError, match="a saved state of the sources other; found toy"):
        run_toy(tmp_path, toy_config(4), supply_of(ToySource(name="other")))


@pytest.mark.parametrize("policy", ["each_push", "never"])
def test_optimizer_is_forgotten_after_a_push_where_asked(policy: str, tmp_path: Path) -> None:
    config = toy_config(2, update=update(optimizer_reset=policy))
    model, _ = run_toy(tmp_path, config)
    optimizer = HybridOptimizer(model.named_parameters(), model.config, config.update.optimizer)
    optimizer.state_dict()["lm_head.weight.adam_mean"].fill_(9.0)
    assert load_state(tmp_path / "state" / "training", model, optimizer) is not None
    is_empty = all(not tensor.any() for tensor in optimizer.state_dict().values())
    assert is_empty == (policy == "each_push")


def test_batch_may_exceed_the_engine_s_queue(tmp_path: Path) -> None:
    small = DETERMINISTIC.model_copy(update={"most_waiting": 5})
    one, _ = run_toy(tmp_path / "small", toy_config(2, engine=small))
    two, _ = run_toy(tmp_path / "large", toy_config(2, engine=DETERMINISTIC))
    assert_equal_weights(one, two)


def test_frozen_parts_stay_and_the_rest_moves(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in toy_model().state_dict().items()}
    model, _ = run_toy(tmp_path, toy_config(2))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    stays = {n for n in before if ".indexer." in n or n.startswith("mtp.") or n.endswith("_bias")}
    assert stays
    assert not moved & stays
    assert {"lm_head.weight", "embed_tokens.weight"} <= moved


def test_router_biases_move_where_a_rate_is_given(tmp_path: Path) -> None:
    model, _ = run_toy(tmp_path, toy_config(1, update=update(router_bias_rate=0.25)))
    biases = {n: v for n, v in model.state_dict().items() if n.endswith("correction_bias")}
    mtp = biases.pop("mtp.block.mlp.gate.e_score_correction_bias")
    assert not mtp.any()
    (main,) = biases.values()
    assert set(main.tolist()) == {0.25, -0.25}


def test_half_precision_policy_is_the_one_that_is_served(tmp_path: Path) -> None:
    config = toy_config(3, update=update(compute_dtype="bfloat16"), engine=DETERMINISTIC)
    model, progress = run_toy(tmp_path, config)
    assert progress.updates == 3
    assert model.lm_head.weight.dtype == torch.float32
    # An engine with the fp32 weights, or with those of the step before, would not agree like this.
    assert values_of(tmp_path, "rl/rho_exact_fraction") == [1.0] * 3


def test_half_precision_policy_is_served_by_the_fast_engine_too(tmp_path: Path) -> None:
    config = toy_config(3, update=update(compute_dtype="bfloat16"))
    _, progress = run_toy(tmp_path, config)
    assert progress.updates == 3
    # Other roundings, now and then another expert.
    assert max(values_of(tmp_path, "rl/engine_kl_low_variance_nats")) < 1e-3


def test_gradients_that_overflow_are_left_out_and_then_stop_the_run(tmp_path: Path) -> None:
    before = toy_model().state_dict()
    model = toy_model()
    model.lm_head.weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    with pytest.raises(DivergenceError, match="found 2 up to batch 2"):
        run_toy(tmp_path, toy_config(9, update=update(nonfinite_limit=1)), model=model)
    assert values_of(tmp_path, "rl/skipped_updates") == [1, 1]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["grpo", "mean", "rloo"])
def test_largest_rewards_train(method: Literal["grpo", "mean", "rloo"], tmp_path: Path) -> None:
    advantage = AdvantageConfig(group_size=4, method=method)
    algorithm = toy_config().algorithm.model_copy(update={"advantage": advantage})
    supply = supply_of(ToySource(lambda ids: LARGEST * (ids[0] % 2 * 2 - 1)))
    _, progress = run_toy(tmp_path, toy_config(2, algorithm=algorithm), supply)
    assert progress.updates == 2
    assert values_of(tmp_path, "rl/skipped_updates") == [0, 0]


def test_weights_that_are_not_finite_end_the_run_with_an_error(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(EngineFailedError, match="weights that are not finite"):
        run_toy(tmp_path, toy_config(2), model=model)
