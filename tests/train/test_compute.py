"""The copy that forward and backward run on: precision, recomputation, and what stays fp32."""

import pytest
import torch
from test_batch import make_rows
from tiny_model import build

from fivefold.models import indexer
from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Transformer
from fivefold.train.balance import BalanceTracker
from fivefold.train.batch import microbatches
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.losses import language_objective, warm_up_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.step import train_step

TINY = preset("nano", vocab_size=99, num_hidden_layers=2, index_topk=6)
ROWS = make_rows([[12, 9], [21], [3, 4, 5], [20]], 21)
CONFIG = GradientConfig(
    total_tokens=10_000, batch_rows=4, batch_rows_start=4, microbatch_rows=2, peak_lr=1e-2
)


def gradients(compute: ComputeModel, model: Transformer, indexer: IndexerMode) -> dict:
    objective = warm_up_objective
    if indexer != "warm_up":
        objective = language_objective(CONFIG, indexer)
    compute.refresh()
    objective(compute.model, ROWS, ROWS, 0).total.backward()
    compute.collect()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("indexer", ["frozen", "warm_up", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_layers_give_the_same_gradients_bit_for_bit(
    dtype: torch.dtype, indexer: IndexerMode
) -> None:
    kept, again = build(TINY), build(TINY)
    expected = gradients(ComputeModel(kept, dtype), kept, indexer)
    found = gradients(ComputeModel(again, dtype, recompute=True), again, indexer)
    assert expected.keys() == found.keys()
    assert expected
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_recomputation_does_not_select_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, select = [], indexer.sparse_index
    monkeypatch.setattr(
        indexer, "sparse_index", lambda *arguments: calls.append(1) or select(*arguments)
    )
    model = build(TINY)
    gradients(ComputeModel(model, torch.float32, recompute=True), model, "sparse")
    # Two layers, and the MTP layer at each of its depths.
    assert len(calls) == 2 + TINY.fivefold.mtp_depths


def test_recomputation_keeps_fewer_bytes_for_the_backward() -> None:
    def saved_bytes(recompute: bool) -> int:
        compute, sizes = ComputeModel(build(TINY), torch.float32, recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.nbytes) or t, lambda t: t
        ):
            language_objective(CONFIG)(compute.model, ROWS, ROWS, 0)
        return sum(sizes)

    assert saved_bytes(True) < 0.35 * saved_bytes(False)


def test_low_precision_gradients_point_the_same_way_and_arrive_in_fp32() -> None:
    # Dense: a key selected otherwise would change a gradient by more than rounding does.
    dense = TINY.model_copy(update={"index_topk": 1024})
    exact, rounded = build(dense), build(dense)
    expected = gradients(ComputeModel(exact, torch.float32), exact, "frozen")
    compute = ComputeModel(rounded, torch.bfloat16)
    found = gradients(compute, rounded, "frozen")
    assert {p.grad for p in compute.model.parameters()} == {None}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    whole = [torch.cat([g.flatten() for g in grads.values()]) for grads in (found, expected)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.995


def test_microbatches_add_up_in_fp32() -> None:
    model = build(TINY)
    compute = ComputeModel(model, torch.bfloat16)
    objective, found = language_objective(CONFIG), []
    compute.refresh()
    for part in microbatches(ROWS, 1):
        objective(compute.model, part, ROWS, 0).total.backward()
        found.append(
            {n: p.grad.clone() for n, p in compute.model.named_parameters() if p.grad is not None}
        )
        compute.collect()
    narrow = 0
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            wide = torch.zeros_like(weight)
            for part in found:
                wide += part.get(name, 0)
            assert torch.equal(weight.grad, wide), name
            narrow += not torch.equal(weight.grad, weight.grad.bfloat16().float())
    # Sums of bf16 numbers that bf16 cannot hold.
    assert narrow > 10


def test_embeddings_routers_and_index_head_weights_are_not_rounded() -> None:
    model = build(TINY)
    compute = ComputeModel(model, torch.bfloat16)
    compute.refresh()
    copies = dict(compute.model.named_parameters())
    for name, weight in model.named_parameters():
        is_exact = name.endswith(("mlp.gate.weight", "weights_proj.weight", "embed_tokens.weight"))
        assert copies[name].dtype == (torch.float32 if is_exact else torch.bfloat16), name
        assert torch.equal(copies[name], weight.to(copies[name].dtype))


def test_steps_in_low_precision_learn_and_keep_fp32_weights() -> None:
    model = build(TINY)
    compute = ComputeModel(model, torch.bfloat16)
    optimizer = HybridOptimizer(model.named_parameters(), TINY, CONFIG.optimizer)
    balance = BalanceTracker(model)
    losses = [
        train_step(
            compute,
            optimizer,
            balance,
            language_objective(CONFIG),
            ROWS,
            5000,
            CONFIG,
            microbatch_rows=2,
        ).measured["loss_nats"]
        for _ in range(6)
    ]
    assert losses[-1] < losses[0] - 0.3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    biases = [router.e_score_correction_bias for router in balance.routers]
    assert any(bias.abs().max() > 0 for bias in biases)


def test_buffers_of_a_later_phase_reach_the_copy() -> None:
    model = build(TINY)
    compute = ComputeModel(model, torch.bfloat16)
    before = compute.model.speeds_R.clone()
    model.set_rope_theta(50_000.0)
    compute.refresh()
    assert torch.equal(compute.model.speeds_R, model.speeds_R)
    assert not torch.equal(compute.model.speeds_R, before)
    assert compute.model.speeds_R.dtype == torch.float32
