"""A bound on activations in training: layers are treated so that it holds, and no bit changes."""

import pytest
import torch
from test_batch import make_rows
from tiny_model import build
from torch import Tensor

from fivefold.config import hash_config, validate
from fivefold.errors import ConfigError
from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Block, Transformer
from fivefold.parallel.pipeline.blank import blank_of
from fivefold.plan.activation_choice import ActivationBoundError
from fivefold.plan.hardware import HARDWARE
from fivefold.train import activations
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.losses import language_objective
from fivefold.train.staged_loss import StagedLanguageLoss

TOKENS = 160
TINY = preset("nano", vocab_size=99, num_hidden_layers=5, n_routed_experts=4, index_topk=512)
ROWS = make_rows([[TOKENS + 1], [100, 61]], TOKENS + 1)
CONFIG = GradientConfig(total_tokens=10_000)


def step(
    model: Transformer,
    indexer: IndexerMode = "frozen",
    dtype: torch.dtype = torch.float32,
    bound: int | None = None,
) -> tuple[ComputeModel, dict[str, Tensor]]:
    compute = ComputeModel(model, dtype, activation_bytes=bound)
    compute.refresh()
    language_objective(CONFIG, indexer)(compute.model, ROWS, ROWS, 0).total.backward()
    compute.collect()
    return compute, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def again(compute: ComputeModel) -> int:
    return sum(block.recompute for block in compute.model.modules() if isinstance(block, Block))


def peak(compute: ComputeModel) -> int:
    assert compute.offloader is not None
    compute.offloader.ledger.check_idle()
    return compute.offloader.ledger.peak_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indexer", ["frozen", "sparse"])
def test_bound_holds_and_gradients_keep_their_bits(
    indexer: IndexerMode, dtype: torch.dtype
) -> None:
    shape = TINY.model_copy(update={"index_topk": 32}) if indexer == "sparse" else TINY
    model = build(shape)
    _, expected = step(model, indexer, dtype)
    roomy, _ = step(build(shape), indexer, dtype, 10**12)
    everything = peak(roomy)
    assert again(roomy) == 0
    bound = int(0.75 * everything)
    model = build(shape)
    compute, found = step(model, indexer, dtype, bound)
    assert 0 < again(compute) < 6
    assert peak(compute) <= bound
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("indexer", "topk"), [("frozen", 512), ("frozen", 32), ("sparse", 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_on_paper_bound_those_that_autograd_keeps(
    indexer: IndexerMode, topk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = TINY.model_copy(update={"index_topk": topk})
    paper = []
    costs = activations.layer_costs
    monkeypatch.setattr(
        activations,
        "layer_costs",
        lambda *args, **fields: paper.append(costs(*args, **fields)) or paper[-1],
    )
    compute, _ = step(build(shape), indexer, dtype, 10**12)
    on_paper = sum(layer.runs * layer.kept_bytes for layer in paper[0].values())
    assert 0.6 * on_paper < peak(compute) <= on_paper


def test_bound_holds_where_layers_move_and_most_of_their_storages_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = peak(step(build(TINY), bound=10**12)[0])
    linked = HARDWARE["h100"].model_copy(update={"host_bandwidth": 1e15})
    monkeypatch.setattr(activations, "find_hardware_of", lambda device: linked)
    bound = int(0.75 * everything)
    compute, _ = step(build(TINY), bound=bound)
    assert compute.offloader is not None
    assert compute.offloader.ledger.out_bytes > 0
    assert peak(compute) <= bound


def test_a_smaller_microbatch_is_chosen_for_anew() -> None:
    model = build(TINY)
    roomy, _ = step(build(TINY), bound=10**12)
    compute, _ = step(model, bound=int(0.75 * peak(roomy)))
    before = again(compute)
    part = ROWS.part(slice(0, 1))
    language_objective(CONFIG)(compute.model, part, part, 0).total.backward()
    assert again(compute) < before


def test_load_of_a_step_is_that_of_its_largest_microbatch() -> None:
    model = build(TINY)
    loss = StagedLanguageLoss(TINY, CONFIG)
    small, large = loss.batches([ROWS.part(slice(0, 1)), ROWS], model)
    around = small.surround()
    x_BTD = torch.zeros(1, TOKENS, TINY.hidden_size)
    # The second row holds two documents, the first one.
    assert around.visible_BTS is None
    alone = activations.load_of(x_BTD, around, 1, 64, [small])
    assert (alone.own, alone.keys, alone.row) == (TOKENS, TOKENS, TOKENS)
    whole = activations.load_of(x_BTD, around, 1, 512, [small, large, blank_of(small)])
    assert (whole.own, whole.keys, whole.row) == (2 * TOKENS, 2 * TOKENS, TOKENS)
    assert whole.has_mask
    assert not activations.load_of(x_BTD, around, 1, 512, [small]).has_mask
    shared = activations.load_of(x_BTD[:, : TOKENS // 2], around, 2, 512, [small, large])
    assert (shared.own, shared.keys) == (TOKENS, 2 * TOKENS)


def test_too_small_a_bound_names_the_least() -> None:
    with pytest.raises(ActivationBoundError, match="bytes of activations, the least that was"):
        step(build(TINY), bound=1000)


def test_bound_excludes_a_treatment_by_hand_and_none_of_them_is_hashed() -> None:
    plain = {"total_tokens": 10_000}
    with pytest.raises(ConfigError, match="activation_bytes"):
        validate(GradientConfig, {**plain, "offload": [1], "activation_bytes": 5}, where="x")
    hashes = {
        hash_config(validate(GradientConfig, {**plain, **fields}, where="x"))
        for fields in (
            {},
            {"recompute": True},
            {"recompute": [1, 2], "offload": True},
            {"offload": [0]},
            {"activation_bytes": 10**9},
        )
    }
    assert len(hashes) == 1
