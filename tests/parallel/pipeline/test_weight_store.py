"""Deferred weight gradients: the bits of a plain pass, each once, bytes as counted by hand."""

import copy
from typing import Any

import pytest
import torch
from test_offload import forward, tiny
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fivefold.models.layer import GatedMlp, Linear
from fivefold.models.moe import MoE
from fivefold.models.preset import preset
from fivefold.ops import experts
from fivefold.parallel.pipeline.deferred import defer_weight_gradients
from fivefold.parallel.pipeline.weight_store import Deferred, WeightGradientStore
from fivefold.train.compute import ComputeModel

CONFIG = preset("nano", hidden_size=32, moe_intermediate_size=16, n_routed_experts=8)


def filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return module


def inputs(tokens: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, tokens, width, generator=generator).requires_grad_()


class Twice(nn.Module):
    """One weight used twice in a forward pass, as the MTP layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = GatedMlp(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mlp(x))


@pytest.mark.parametrize("tokens", [16, 37])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(32, 48, bias=True),
        lambda: Linear(32, 20),
        lambda: GatedMlp(32, 48),
        Twice,
        lambda: MoE(CONFIG),
    ],
    ids=["bias", "linear", "mlp", "twice", "moe"],
)
def test_gradients_have_the_bits_of_a_plain_pass(make, tokens: int) -> None:
    plain = filled(make())
    deferred = copy.deepcopy(plain)
    store = WeightGradientStore()
    defer_weight_gradients(deferred, store)
    runs = []
    for seed in range(3):
        results = []
        for module in (plain, deferred):
            x = inputs(tokens, 32, seed)
            y = module(x)
            y = y[0] if isinstance(y, tuple) else y
            y.backward(torch.ones_like(y).cumsum(1) / 16)
            results.append((y.detach(), x.grad))
        runs.append(store.take())
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs)
    waiting = {n for n, p in deferred.named_parameters() if p.grad is None}
    assert waiting == {n for n, _ in plain.named_parameters()} - {"gate.weight"}
    for run in runs:
        run()
    store.check_idle()
    assert store.ledger.deferred == store.ledger.computed > 0
    for (name, ours), theirs in zip(deferred.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad), name


def test_experts_take_their_products_from_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a GPU does it in bf16: other bits than those of one product an expert.
    plain_gradient, calls = experts.weight_gradient, []

    def coarse(*args: Any) -> Tensor:
        calls.append(args)
        return plain_gradient(*args).bfloat16().float()

    monkeypatch.setattr(experts, "weight_gradient", coarse)
    plain = filled(MoE(CONFIG))
    deferred, store = copy.deepcopy(plain), WeightGradientStore()
    defer_weight_gradients(deferred, store)
    for module in (plain, deferred):
        y, _ = module(inputs(16, 32, 0))
        y.backward(torch.ones_like(y).cumsum(1) / 16)
    store.take()()
    assert len(calls) == 4
    for name in ("experts.gate_up", "experts.down"):
        found, wanted = (module.get_parameter(name).grad for module in (deferred, plain))
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted), name


def test_shared_inputs_are_held_once() -> None:
    mlp = filled(GatedMlp(32, 48))
    store = WeightGradientStore()
    defer_weight_gradients(mlp, store)
    mlp(inputs(16, 32, 0)).backward(torch.ones(2, 16, 32))
    # Input of gate and up, product of both, and the gradients of the three outputs.
    tokens = 32
    assert store.ledger.held_bytes == 4 * tokens * (32 + 48 + 48 + 48) + 4 * tokens * 32
    store.take()()
    assert store.ledger.held_bytes == 0


def test_bound_computes_the_oldest_early_and_nothing_twice() -> None:
    weight = nn.Parameter(torch.zeros(1))
    order: list[int] = []

    def compute(number: int, kept: Tensor) -> tuple[Tensor]:
        order.append(number)
        return (torch.full((1,), float(10**number)),)

    store = WeightGradientStore(limit_bytes=800)
    runs = []
    for number in range(4):
        kept = torch.zeros(100)
        store.put(Deferred((weight,), lambda kept, n=number: compute(n, kept), (kept,)))
        runs.append(store.take())
        assert store.ledger.held_bytes <= 800
    assert order == [0, 1]
    for run in runs:
        run()
    assert order == [0, 1, 2, 3]
    assert weight.grad is not None
    assert weight.grad.item() == 1111.0
    assert (store.ledger.early, store.ledger.computed) == (2, 4)
    assert store.ledger.peak_bytes == 1200
    store.check_idle()


def test_a_forgotten_weight_gradient_is_noticed() -> None:
    store = WeightGradientStore()
    store.put(Deferred((), lambda: (), ()))
    store.take()
    with pytest.raises(AssertionError, match="1 microbatches wait"):
        store.check_idle()


def test_frozen_weights_defer_nothing() -> None:
    mlp = filled(GatedMlp(32, 48)).requires_grad_(False)
    store = WeightGradientStore()
    defer_weight_gradients(mlp, store)
    x = inputs(16, 32, 0)
    mlp(x).sum().backward()
    assert x.grad is not None
    assert store.ledger.deferred == 0


@pytest.mark.parametrize("offload", [(), (0, 1, 2)])
def test_activations_that_wait_for_weight_gradients_are_on_the_device(
    offload: tuple[int, ...],
) -> None:
    model = tiny()
    compute = ComputeModel(model, torch.float32, offload=True, least_bytes=64)
    offloader = compute.offloader
    assert offloader is not None
    offloader.move(offload, 1)
    ledger, store = offloader.ledger, WeightGradientStore(activations=offloader.ledger)
    defer_weight_gradients(model, store)
    storages: dict[int, tuple[StorageWeakRef, int]] = {}
    counted: list[tuple[int, int]] = []
    pack, put = offloader._pack, store.put

    def watch(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    def alive_bytes() -> int:
        return sum(size for reference, size in storages.values() if not reference.expired())

    def watch_pack(run: Any, outside: set[int], tensor: Tensor) -> Any:
        packed = pack(run, outside, tensor)
        if not isinstance(packed, Tensor):
            watch(tensor)
        return packed

    def watch_put(entry: Deferred) -> None:
        put(entry)
        for tensor in entry.kept:
            watch(tensor)
        counted.append((ledger.held_bytes, alive_bytes()))

    offloader._pack, store.put = watch_pack, watch_put
    forward(compute).total.backward()
    # What has come back from the host stands elsewhere than it did.
    assert offload or all(held == alive for held, alive in counted)
    # The backward is over: what is left waits for weight gradients.
    assert ledger.held_bytes == alive_bytes() == store.ledger.held_bytes > 0
    store.take()()
    store.check_idle()
    ledger.check_idle()
