"""Reinforcement learning on a GPU: rewards rise, the trainer knows what the engine sampled from."""

from pathlib import Path

import numpy as np
import pytest
from test_loop import DETERMINISTIC, values_of
from toy import run_toy, toy_config, toy_model

from fivefold.models.transformer import Transformer

pytestmark = pytest.mark.gpu


def on_gpu() -> Transformer:
    return toy_model().to("cuda")


def test_reward_rises_on_a_trivial_task(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(16), model=on_gpu())
    rewards = values_of(tmp_path, "rl/reward_mean")
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.4
    assert max(values_of(tmp_path, "rl/rho_largest_log_nats")) < 1e-4


def test_rho_is_exactly_one_in_deterministic_mode(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(4, engine=DETERMINISTIC), model=on_gpu())
    assert values_of(tmp_path, "rl/rho_exact_fraction") == [1.0] * 4
    assert values_of(tmp_path, "rl/rho_largest_log_nats") == [0.0] * 4
