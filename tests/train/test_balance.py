"""Router balance: the bias rule, the sequence loss and its gradient, and a skewed router."""

import numpy as np
import pytest
import torch

from fivefold.models.moe import Router, Routing
from fivefold.models.preset import preset
from fivefold.train.balance import balance_bias, max_violation, sequence_balance_loss


def test_bias_moves_by_the_rate_towards_the_mean() -> None:
    bias = torch.zeros(4)
    balance_bias(bias, torch.tensor([10, 2, 6, 6]), rate=0.001)
    assert bias.tolist() == pytest.approx([-0.001, 0.001, 0.0, 0.0])


def test_max_violation_of_known_loads() -> None:
    assert max_violation(torch.tensor([4, 4, 4, 4])) == 0
    assert max_violation(torch.tensor([8, 4, 4, 0])) == 1
    assert max_violation(torch.zeros(4)) == 0


def test_bias_drives_a_skewed_router_to_balance() -> None:
    """Inputs that all favour the same experts end evenly spread, weights still unbiased."""
    config = preset("nano")
    router = Router(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(router.weight, std=0.05, generator=generator)
    x = torch.randn(512, config.hidden_size, generator=generator) + 1.0
    counts = lambda: torch.bincount(router(x)[1].chosen_TA.flatten(), minlength=16)  # noqa: E731
    before = max_violation(counts())
    for _ in range(600):
        balance_bias(router.e_score_correction_bias, counts(), rate=0.002)
    after = max_violation(counts())
    assert before > 1.0
    assert after < 0.1
    weight, routing = router(x)
    scores = routing.scores_TE.gather(1, routing.chosen_TA)
    unbiased = scores / scores.sum(-1, keepdim=True) * config.routed_scaling_factor
    assert torch.allclose(weight, unbiased)


def test_adding_a_constant_to_all_biases_changes_nothing() -> None:
    config = preset("nano")
    router = Router(config)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(64, config.hidden_size, generator=torch.Generator().manual_seed(2))
    before = router(x)
    router.e_score_correction_bias += 0.25
    after = router(x)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1].chosen_TA, after[1].chosen_TA)


def test_sequence_loss_and_gradient_match_the_formula() -> None:
    """DeepSeek-V3 equations 17 to 20 in plain loops, gradient through the mean scores only."""
    rows, tokens, experts, chosen = 3, 5, 6, 2
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(rows * tokens, experts, generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    picks = torch.rand(rows * tokens, experts, generator=generator).topk(chosen).indices
    loss = sequence_balance_loss(Routing(picks, scores), rows)
    loss.backward()
    expected = torch.zeros((), dtype=torch.float64)
    again = scores.detach().clone().requires_grad_()
    for row in range(rows):
        part = slice(row * tokens, (row + 1) * tokens)
        for expert in range(experts):
            f = float((picks[part] == expert).sum()) * experts / (chosen * tokens)
            p = (again[part, expert] / again[part].sum(-1)).mean()
            expected = expected + f * p / rows
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert scores.grad is not None
    assert again.grad is not None
    assert np.allclose(scores.grad, again.grad, rtol=1e-12, atol=1e-15)


def test_perfect_balance_has_loss_one() -> None:
    scores = torch.full((8, 4), 0.3)
    picks = torch.arange(8)[:, None] % 4
    assert float(sequence_balance_loss(Routing(picks, scores), 1)) == pytest.approx(1.0)
