"""A training step on a GPU is the one on a CPU: losses, norms, expert choices, weights, state.

Packed rows under a mask, MTP unrolled twice, experts, Muon Split and AdamW, in all three modes of
the indexer. In fp64 nothing but the order of sums differs.
"""

from typing import NamedTuple

import pytest
import torch
from tiny_training import Mode, Setting, copies, make_model, rows_of_step
from torch import Tensor

from fivefold.ops.bf16 import multiplies_bf16
from fivefold.train.balance import BalanceTracker
from fivefold.train.compute import ComputeModel
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import StepResult, train_step

pytestmark = pytest.mark.gpu

MODES = pytest.mark.parametrize("mode", ["dense", "warm_up", "sparse"])


class Trained(NamedTuple):
    """What some steps left, on the CPU."""

    results: list[StepResult]
    weights: dict[str, Tensor]
    state: dict[str, Tensor]


def train(setting: Setting, device: str, steps: int = 2) -> Trained:
    """Train the same model on the same rows."""
    model = make_model(setting).to(device)
    config = setting.config
    optimizer = HybridOptimizer(model.named_parameters(), model.config, config.optimizer)
    compute = ComputeModel(model, getattr(torch, config.compute_dtype), recompute=setting.recompute)
    tracker = BalanceTracker(model)
    results = [
        train_step(
            compute,
            optimizer,
            tracker,
            setting.objective,
            rows_of_step(step),
            1000 * step,
            config,
            microbatch_rows=setting.microbatch_rows,
        )
        for step in range(steps)
    ]
    weights, state = (copies(part.state_dict()) for part in (model, optimizer))
    here = [{name: value.cpu() for name, value in part.items()} for part in (weights, state)]
    return Trained(results, *here)


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest distance of a tensor relative to its length, and whose it is."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    return max(
        (
            float((found[name] - value).double().norm() / value.double().norm().clamp_min(1e-30)),
            name,
        )
        for name, value in wanted.items()
    )


def assert_equal_results(found: Trained, wanted: Trained, tolerance: float) -> None:
    for mine, theirs in zip(found.results, wanted.results, strict=True):
        assert mine.measured == pytest.approx(theirs.measured, rel=tolerance)
        assert mine.gradient_norms == pytest.approx(theirs.gradient_norms, rel=tolerance)
        pairs = zip(mine.expert_counts, theirs.expert_counts, strict=True)
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


@MODES
@pytest.mark.parametrize("recompute", [False, (1, 3)])
def test_steps_in_fp64_are_those_of_a_cpu(mode: Mode, recompute: bool | tuple[int, ...]) -> None:
    setting = Setting(mode=mode, recompute=recompute)
    found, wanted = train(setting, "cuda"), train(setting, "cpu")
    assert_equal_results(found, wanted, 1e-10)
    assert worst(found.weights, wanted.weights)[0] < 1e-9
    assert worst(found.state, wanted.state)[0] < 1e-9


@MODES
def test_steps_in_fp32_are_those_of_a_cpu(mode: Mode) -> None:
    """Weights are held to less: Muon makes small singular values large, and their rounding too."""
    setting = Setting(mode=mode, dtype="float32")
    found, wanted = train(setting, "cuda"), train(setting, "cpu")
    assert_equal_results(found, wanted, 2e-5)
    assert worst(found.weights, wanted.weights)[0] < 1e-3


@MODES
def test_steps_in_bf16_measure_nearly_what_fp32_measures(mode: Mode) -> None:
    assert multiplies_bf16(torch.device("cuda"))
    exact = train(Setting(mode=mode, dtype="float32"), "cuda", 1)
    narrow = train(Setting(mode=mode, dtype="float32", compute_dtype="bfloat16"), "cuda", 1)
    for name, value in exact.results[0].measured.items():
        assert narrow.results[0].measured[name] == pytest.approx(value, rel=0.05), name
    assert not narrow.results[0].is_skipped
    assert all(bool(value.isfinite().all()) for value in narrow.weights.values())


def test_sums_in_one_order_repeat_a_training_bit_for_bit(one_order: None) -> None:
    setting = Setting(mode="sparse", dtype="float32", compute_dtype="bfloat16")
    first, second = train(setting, "cuda"), train(setting, "cuda")
    assert all(torch.equal(second.weights[name], value) for name, value in first.weights.items())
