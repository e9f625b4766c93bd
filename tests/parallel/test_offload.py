"""Activations that wait on the host: the same bits, every byte counted, in the table's order."""

import functools
from typing import Any

import pytest
import torch
from test_batch import make_rows
from tiny_model import build
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fivefold.errors import ConfigError
from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import BlockOutput, Transformer
from fivefold.parallel.offload import Layers, Offloader, blocks_by_layer, named_layers
from fivefold.plan.block_order import RunBytes, held_bytes, one_pass
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.losses import LossParts, language_objective, warm_up_objective

TINY = preset(
    "nano",
    vocab_size=99,
    hidden_size=32,
    intermediate_size=32,
    moe_intermediate_size=16,
    num_hidden_layers=5,
    n_routed_experts=4,
    num_experts_per_tok=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    index_topk=6,
)
"""Five layers, and three depths of MTP behind them: eight block runs."""
ROWS = make_rows([[12, 9], [21], [3, 4, 5], [20]], 21)
CONFIG = GradientConfig(total_tokens=10_000, balance_loss_weight=0.01)


def tiny(indexer: IndexerMode = "frozen", **changes: Any) -> Transformer:
    model = build(TINY.model_copy(update=changes))
    for name, parameter in model.named_parameters():
        is_indexer = ".indexer." in name
        parameter.requires_grad_(
            {"frozen": not is_indexer, "warm_up": is_indexer}.get(indexer, True)
        )
    return model


def forward(compute: ComputeModel, indexer: IndexerMode = "frozen") -> LossParts:
    objective = warm_up_objective
    if indexer != "warm_up":
        objective = language_objective(CONFIG, indexer)
    compute.refresh()
    return objective(compute.model, ROWS, ROWS, 0)


def gradients(compute: ComputeModel, model: Transformer, indexer: IndexerMode) -> dict[str, Tensor]:
    for _ in range(2):
        forward(compute, indexer).total.backward()
        compute.collect()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("recompute", "offload"),
    [(False, True), ((1, 4), (0, 2, 3)), (True, True), ((0, 5), (3, 5))],
)
@pytest.mark.parametrize("indexer", ["frozen", "warm_up", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_activations_give_the_same_gradients_bit_for_bit(
    dtype: torch.dtype, indexer: IndexerMode, recompute: Layers, offload: Layers
) -> None:
    model = tiny(indexer)
    expected = gradients(ComputeModel(model, dtype), model, indexer)
    model = tiny(indexer)
    compute = ComputeModel(model, dtype, recompute=recompute, offload=offload, least_bytes=64)
    found = gradients(compute, model, indexer)
    assert expected.keys() == found.keys()
    assert expected
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert compute.offloader is not None
    ledger = compute.offloader.ledger
    ledger.check_idle()
    assert ledger.late == 0
    if indexer == "warm_up":  # the pass ends before the MTP layer's second depth
        assert ledger.in_bytes <= ledger.out_bytes
    else:
        assert 0 < ledger.in_bytes == ledger.out_bytes


def watch(offload: Layers, least_bytes: int = 64, **changes: Any) -> tuple[Offloader, list, list]:
    """Run forward and backward; return the offloader and bytes held and sent after each forward."""
    model = tiny(**changes)
    offloader = Offloader(
        named_layers(offload, range(6)), 8, torch.device("cpu"), least_bytes=least_bytes
    )
    held, sent = [], []

    def run(*arguments: Any) -> BlockOutput:
        before = offloader.ledger.held_bytes, offloader.ledger.out_bytes
        output = offloader.run(*arguments)
        held.append(offloader.ledger.held_bytes - before[0])
        sent.append(offloader.ledger.out_bytes - before[1])
        return output

    for layer, block in blocks_by_layer(model).items():
        vars(block)["forward"] = functools.partial(run, block, layer)
    loss = language_objective(CONFIG)(model, ROWS, ROWS, 0).total
    # What is known of the forward, before the backward changes it.
    loss.backward()
    offloader.ledger.check_idle()
    return offloader, held, sent


def test_ledger_is_the_walk_of_the_order_on_paper() -> None:
    _, saved, _ = watch(False)
    for moving in ((0, 1, 2, 3, 4, 5), (0, 2, 4), (1,)):
        offloader, _, sent = watch(moving)
        runs = [RunBytes(out, all_ - out) for all_, out in zip(saved, sent, strict=True)]
        of_layer = [0, 1, 2, 3, 4, 5, 5, 5]
        line = held_bytes(one_pass(8), runs, [r for r in range(8) if of_layer[r] in moving], 1)
        ledger = offloader.ledger
        assert ledger.peak_bytes == max(line)
        assert ledger.out_bytes == ledger.in_bytes == sum(sent)
        assert {layer: moved.out_bytes > 0 for layer, moved in ledger.layers.items()} == {
            layer: layer in moving for layer in range(6)
        }


def test_peak_stays_below_its_bound() -> None:
    _, saved, _ = watch(False)
    offloader, _, sent = watch(True)
    # The last two runs come back too soon to leave; of the others two are there at once.
    assert sent[-2:] == [0, 0]
    bound = sum(saved) - sum(sent) + 2 * max(sent)
    assert offloader.ledger.peak_bytes <= bound < 0.7 * sum(saved)


def test_memory_is_given_up_as_the_ledger_says() -> None:
    model = tiny()
    compute = ComputeModel(model, torch.float32, offload=(0, 1, 2), least_bytes=64)
    storages: dict[int, tuple[StorageWeakRef, int]] = {}
    offloader = compute.offloader
    assert offloader is not None
    pack = offloader._pack

    def spy(run: Any, outside: set[int], tensor: Tensor) -> Any:
        packed = pack(run, outside, tensor)
        if not isinstance(packed, Tensor):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return packed

    offloader._pack = spy
    losses = forward(compute)
    alive = sum(size for reference, size in storages.values() if not reference.expired())
    assert alive == offloader.ledger.held_bytes
    assert offloader.ledger.host_bytes > 0.9 * offloader.ledger.out_bytes > 0
    del losses
    offloader.ledger.check_idle()


def test_small_storages_stay() -> None:
    sent = watch(True, least_bytes=10_000)[2]
    assert 0 < sum(sent) < 0.9 * sum(watch(True)[2])
    assert watch(True, least_bytes=10**7)[0].ledger.out_bytes == 0


def test_a_selection_that_several_layers_share_travels_once() -> None:
    own = watch((0, 1, 2))[2]
    shared = watch((0, 1, 2), indexer_types=("full", "shared", "shared", "full", "full"))[2]
    assert all(a <= b for a, b in zip(shared, own, strict=True))
    assert sum(shared) < sum(own)


def test_backwards_out_of_order_wait_and_are_right() -> None:
    model = tiny()
    expected = gradients(ComputeModel(model, torch.float32), model, "frozen")
    model = tiny()
    compute = ComputeModel(model, torch.float32, offload=True, least_bytes=64)
    first, second = forward(compute), forward(compute)
    first.total.backward()
    second.total.backward()
    assert compute.offloader is not None
    assert compute.offloader.ledger.late > 0
    compute.offloader.ledger.check_idle()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_forward_without_gradient_moves_nothing() -> None:
    model = tiny()
    compute = ComputeModel(model, torch.float32, offload=True, least_bytes=64)
    with torch.no_grad():
        forward(compute)
    assert compute.offloader is not None
    assert compute.offloader.ledger.peak_bytes == 0


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers from 0 to 5"):
        ComputeModel(tiny(), torch.float32, offload=(2, 6))


def test_a_model_that_keeps_again_has_its_own_forwards() -> None:
    model = tiny()
    ComputeModel(model, torch.float32, offload=True)
    compute = ComputeModel(model, torch.float32)
    assert compute.offloader is None
    assert not any("forward" in vars(block) for block in blocks_by_layer(model).values())


@pytest.mark.gpu
def test_streams_of_a_gpu_bring_back_the_same_numbers() -> None:
    found = []
    for offload in (False, True):
        model = tiny().to("cuda")
        compute = ComputeModel(model, torch.float32, offload=offload, least_bytes=64)
        found.append(gradients(compute, model, "frozen"))
        torch.cuda.synchronize()
    kept, moved = found
    assert kept.keys() == moved.keys()
    # Sums by atomic additions have no fixed order.
    for name, value in kept.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5)
