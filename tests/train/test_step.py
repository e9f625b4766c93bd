"""One step: the loss against whole logits, microbatch invariance, the non-finite policy."""

import math

import pytest
import torch
from test_batch import make_rows
from tiny_model import build
from torch.nn import functional as F

from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED
from fivefold.train.balance import BalanceTracker, sequence_balance_loss
from fivefold.train.batch import make_batch, microbatches
from fivefold.train.compute import ComputeModel
from fivefold.train.config import PretrainConfig
from fivefold.train.losses import language_loss, language_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.optimizer_config import OptimizerConfig
from fivefold.train.step import clip_gradients, train_step

TINY = preset("nano", vocab_size=99, num_hidden_layers=2, index_topk=1024)
CONFIG = PretrainConfig(
    model=TINY,
    context_tokens=20,
    total_tokens=10_000,
    batch_rows=4,
    batch_rows_start=4,
    microbatch_rows=2,
    loss_chunk_tokens=16,
    balance_loss_weight=0.01,
    optimizer=OptimizerConfig(ns_dtype="float32"),
)
ROWS = make_rows([[12, 9], [21], [3, 4, 5], [20]], 21)


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def accumulate(model: Transformer, size: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the summed loss and gradients of ROWS in microbatches of `size`."""
    model.zero_grad()
    total = 0.0
    for part in microbatches(ROWS, size):
        losses = language_loss(
            model, part, ROWS, depths=3, mtp_weight=0.3, balance_weight=0.01, chunk_tokens=7
        )
        losses.total.backward()
        total += float(losses.total.detach())
    return total, gradients(model)


def test_loss_equals_whole_logits_and_its_gradient() -> None:
    model = build(TINY).double()
    total, found = accumulate(model, 4)
    model.zero_grad()
    batch = make_batch(ROWS, 3, "cpu")
    around = model.surroundings(batch.positions_BT, batch.documents_BT)
    state, routed, _ = model(batch.ids_BT, around=around)
    parts = []
    for depth in range(4):
        if depth:
            assert model.mtp is not None
            ahead = model.embed_tokens(batch.ahead_BT[depth - 1])
            state, routing, _ = model.mtp(state, ahead, around)
            routed = [*routed, routing]
        logits = model.lm_head(state).flatten(0, 1)
        parts.append(
            F.cross_entropy(logits, batch.labels_BT[depth].flatten(), ignore_index=IGNORED)
        )
    balance = torch.stack([sequence_balance_loss(r, 4) for r in routed]).mean()
    expected = parts[0] + 0.3 * (parts[1] + parts[2] + parts[3]) / 3 + 0.01 * balance
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-6)
    wanted = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # The denominators' weights are fp32: 1e-7 relative.
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-8), name


def test_microbatches_change_neither_loss_nor_gradients() -> None:
    model = build(TINY).double()
    whole, expected = accumulate(model, 4)
    for size in (1, 2, 3):
        split, found = accumulate(model, size)
        assert split == pytest.approx(whole, rel=1e-6)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-9), name


def test_step_lowers_the_loss_on_its_own_rows() -> None:
    model = build(TINY)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    optimizer = HybridOptimizer(model.named_parameters(), TINY, CONFIG.optimizer)
    tracker = BalanceTracker(model)
    bias_before = tracker.routers[0].e_score_correction_bias.clone()
    config = CONFIG.model_copy(update={"peak_lr": 5e-3})
    losses = [
        train_step(
            ComputeModel(model, torch.float32),
            optimizer,
            tracker,
            language_objective(config),
            ROWS,
            5000,
            config,
            microbatch_rows=2,
        )
        for _ in range(8)
    ]
    for name in ("loss_nats", "mtp1_loss_nats", "mtp2_loss_nats", "mtp3_loss_nats"):
        assert losses[-1].measured[name] < losses[0].measured[name] - 0.1
    moved = (tracker.routers[0].e_score_correction_bias - bias_before).abs().max()
    assert 0 < moved <= 8 * CONFIG.router_bias_rate + 1e-6
    assert len(tracker.routers) == 2
    mtp_counts = losses[0].expert_counts[-1].sum()
    assert mtp_counts == 3 * losses[0].expert_counts[0].sum()


def test_nonfinite_gradient_skips_the_update_and_says_so() -> None:
    model = build(TINY)
    optimizer = HybridOptimizer(model.named_parameters(), TINY, CONFIG.optimizer)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = {n: t.clone() for n, t in optimizer.state_dict().items()}
    model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    tracker, objective = BalanceTracker(model), language_objective(CONFIG)
    compute = ComputeModel(model, torch.float32)
    result = train_step(compute, optimizer, tracker, objective, ROWS, 0, CONFIG, microbatch_rows=2)
    assert result.is_skipped
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(state[n], t) for n, t in optimizer.state_dict().items())


def test_activations_that_are_not_numbers_skip_the_update_too() -> None:
    model = build(TINY)
    with torch.no_grad():
        dict(model.named_parameters())["layers.0.input_layernorm.weight"][3] = math.nan
    optimizer = HybridOptimizer(model.named_parameters(), TINY, CONFIG.optimizer)
    compute, tracker = ComputeModel(model, torch.float32), BalanceTracker(model)
    objective = language_objective(CONFIG)
    result = train_step(compute, optimizer, tracker, objective, ROWS, 0, CONFIG, microbatch_rows=2)
    assert result.is_skipped
    assert math.isnan(result.measured["loss_nats"])


def test_clipping_scales_each_group_alone() -> None:
    groups = {
        "backbone": [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))],
        "indexer": [torch.nn.Parameter(torch.zeros(2))],
    }
    groups["backbone"][0].grad = torch.tensor([3.0, 0.0, 0.0])
    groups["backbone"][1].grad = torch.tensor([4.0])
    groups["indexer"][0].grad = torch.tensor([0.3, 0.4])
    norms = clip_gradients(groups, 1.0)
    assert norms == pytest.approx({"backbone": 5.0, "indexer": 0.5})
    assert groups["backbone"][0].grad.tolist() == pytest.approx([0.6, 0.0, 0.0])
    assert groups["indexer"][0].grad.tolist() == pytest.approx([0.3, 0.4])
