"""Activations on their way from a GPU to its host and back: same bits, less memory, bounds kept.

Copies run on streams of their own, so that a missing wait shows only when a copy is slow: the tests
make copies as slow as they like, and show that without the waits the numbers would be wrong.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_offload import gradients, tiny
from tiny_model import build
from torch import Tensor

from fivefold.data.loader import Rows
from fivefold.models.preset import preset
from fivefold.models.surroundings import IndexerMode
from fivefold.models.transformer import Block, Transformer
from fivefold.parallel import offload
from fivefold.parallel.host_link import StreamLink
from fivefold.parallel.offload import Layers
from fivefold.parallel.offload_ledger import OffloadLedger
from fivefold.plan.activation_choice import ActivationChoice
from fivefold.plan.activation_order import choose_in_order
from fivefold.train import activations
from fivefold.train.compute import ComputeModel
from fivefold.train.config import GradientConfig
from fivefold.train.losses import language_objective

pytestmark = pytest.mark.gpu

CONFIG = GradientConfig(total_tokens=10**6, loss_chunk_tokens=1024)
WIDE = preset(
    "small",
    vocab_size=2048,
    num_hidden_layers=8,
    first_k_dense_replace=8,
    num_nextn_predict_layers=0,
    index_topk=32_768,
)
"""Dense layers of width 1,024."""
CYCLES = 4_000_000
"""Two milliseconds or so, longer than a layer takes."""


def wide(layers: int = 8) -> Transformer:
    model = build(WIDE.model_copy(update={"num_hidden_layers": layers}), deviation=0.02)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return model.to("cuda").train()


def rows_of(rows: int, tokens: int) -> Rows:
    ids = np.random.default_rng(0).integers(3, 2048, (rows, tokens + 1)).astype(np.int32)
    places = np.broadcast_to(np.arange(tokens + 1, dtype=np.int32), ids.shape).copy()
    return Rows(ids, np.zeros_like(ids), places, np.zeros(rows, np.int16))


def step(compute: ComputeModel, rows: Rows) -> None:
    compute.refresh()
    language_objective(CONFIG)(compute.model, rows, rows, 0).total.backward()
    compute.collect()


def gradients_of(model: Transformer, rows: Rows, **treatment: Any) -> dict[str, Tensor]:
    """Return the gradients of three microbatches, whose activations follow one another."""
    model.zero_grad(set_to_none=True)
    compute = ComputeModel(model, torch.bfloat16, **treatment)
    for _ in range(3):
        step(compute, rows)
    if compute.offloader is not None:
        ledger_of(compute).check_idle()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class SlowLink(StreamLink):
    """Each copy begins late, both ways."""

    def start_out(self, device_bytes: Tensor) -> tuple[Tensor, Any]:
        self._out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._out):
            torch.cuda._sleep(CYCLES)
        return super().start_out(device_bytes)

    def start_in(self, host_bytes: Tensor, left: torch.cuda.Event) -> tuple[Tensor, Any]:
        with torch.cuda.stream(self._in):
            torch.cuda._sleep(CYCLES)
        return super().start_in(host_bytes, left)


class CarelessLink(SlowLink):
    """Nobody waits for the copies."""

    def wait(self, event: torch.cuda.Event) -> None:
        del event


@pytest.mark.parametrize(
    ("recompute", "moved"),
    [(False, True), ((1, 4), (0, 2, 3)), (True, True), ((0, 5), (3, 5))],
)
@pytest.mark.parametrize("indexer", ["frozen", "warm_up", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_activations_give_the_same_gradients_bit_for_bit(
    one_order: None, dtype: torch.dtype, indexer: IndexerMode, recompute: Layers, moved: Layers
) -> None:
    model = tiny(indexer).to("cuda")
    expected = gradients(ComputeModel(model, dtype), model, indexer)
    model = tiny(indexer).to("cuda")
    compute = ComputeModel(model, dtype, recompute=recompute, offload=moved, least_bytes=64)
    found = gradients(compute, model, indexer)
    assert expected.keys() == found.keys()
    assert expected
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    ledger = ledger_of(compute)
    ledger.check_idle()
    assert ledger.late == 0
    if indexer == "warm_up":  # the pass ends early, and inputs without gradient are not saved
        assert ledger.in_bytes <= ledger.out_bytes
    else:
        assert 0 < ledger.in_bytes == ledger.out_bytes


@contextmanager
def plain_memory() -> Iterator[None]:
    """Leave fresh memory as it is: filling it would itself wait for the compute stream."""
    setting: Any = torch.utils.deterministic
    setting.fill_uninitialized_memory = False
    yield
    setting.fill_uninitialized_memory = True


@pytest.mark.parametrize("link", [StreamLink, SlowLink])
def test_copies_beside_computing_bring_back_the_same_bits(
    one_order: None, link: type[StreamLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = wide(), rows_of(4, 1024)
    with plain_memory():
        expected = gradients_of(model, rows)
        monkeypatch.setattr(offload, "make_link", link)
        found = gradients_of(model, rows, offload=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_waits_the_numbers_would_be_wrong(
    one_order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = wide(), rows_of(4, 1024)
    with plain_memory():
        expected = gradients_of(model, rows)
        monkeypatch.setattr(offload, "make_link", CarelessLink)
        found = gradients_of(model, rows, offload=True)
    assert not all(torch.equal(found[name], value) for name, value in expected.items())


def peak_of(model: Transformer, rows: Rows, **treatment: Any) -> tuple[int, int]:
    """Return what torch's allocator and the ledger call the peak of a step, in bytes."""
    compute = ComputeModel(model, torch.bfloat16, **treatment)
    ledger = ledger_of(compute)
    for _ in range(2):
        step(compute, rows)
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before, ledger.peak_bytes = torch.cuda.memory_allocated(), 0
    torch.cuda.reset_peak_memory_stats()
    step(compute, rows)
    torch.cuda.synchronize()
    ledger.check_idle()
    return torch.cuda.max_memory_allocated() - before, ledger.peak_bytes


def ledger_of(compute: ComputeModel) -> OffloadLedger:
    assert compute.offloader is not None
    return compute.offloader.ledger


def test_memory_is_given_up_as_the_ledger_says() -> None:
    model, rows = wide(), rows_of(8, 1024)
    kept, on_paper_kept = peak_of(model, rows, activation_bytes=10**12)
    moved, on_paper_moved = peak_of(model, rows, offload=True)
    assert on_paper_moved < 0.5 * on_paper_kept
    assert kept - moved > 0.8 * (on_paper_kept - on_paper_moved)


@pytest.mark.parametrize("is_fast", [False, True], ids=["its link", "a link without limit"])
@pytest.mark.parametrize("share", [0.6, 0.3])
def test_a_bound_is_kept_and_no_bit_changes(
    one_order: None, share: float, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this width a layer is computed again in less time than the link takes for all of it."""
    chosen: list[ActivationChoice] = []

    def choose(*arguments: Any, host_bandwidth: float, **fields: Any) -> ActivationChoice:
        bandwidth = 1e15 if is_fast else host_bandwidth
        chosen.append(choose_in_order(*arguments, host_bandwidth=bandwidth, **fields))
        return chosen[-1]

    monkeypatch.setattr(activations, "choose_in_order", choose)
    model, rows = wide(12), rows_of(1, 16_384)
    with plain_memory():
        everything = peak_of(model, rows, activation_bytes=10**12)[1]
        bound = int(share * everything)
        kept = peak_of(model, rows, activation_bytes=bound)[1]
        found = gradients_of(model, rows, activation_bytes=bound)
        expected = gradients_of(model, rows)
    assert kept <= chosen[-1].held_bytes <= bound
    moved = [each for each in chosen[-1].treatments if each.move]
    assert moved, chosen[-1].summary()
    assert all(not each.recompute for each in moved) == is_fast
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("indexer", ["frozen", "sparse"])
def test_bytes_on_paper_bound_those_that_a_gpu_keeps(
    indexer: IndexerMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper: list[Any] = []
    costs = activations.layer_costs
    monkeypatch.setattr(
        activations,
        "layer_costs",
        lambda *args, **fields: paper.append(costs(*args, **fields)) or paper[-1],
    )
    shape = preset("small", vocab_size=2048, num_hidden_layers=4, n_routed_experts=8)
    shape = shape.model_copy(update={"index_topk": 128 if indexer == "sparse" else 4096})
    model = build(shape, deviation=0.02).to("cuda").train()
    compute = ComputeModel(model, torch.bfloat16, activation_bytes=10**12)
    compute.refresh()
    rows = rows_of(2, 1024)
    language_objective(CONFIG, indexer)(compute.model, rows, rows, 0).total.backward()
    on_paper = sum(layer.runs * layer.kept_bytes for layer in paper[0].values())
    assert 0.6 * on_paper < ledger_of(compute).peak_bytes <= on_paper


def test_treatments_can_follow_the_size_of_a_microbatch() -> None:
    model = wide()
    everything = peak_of(model, rows_of(4, 1024), activation_bytes=10**12)[1]
    compute = ComputeModel(model, torch.bfloat16, activation_bytes=everything // 2)
    again = []
    for rows in (4, 1):
        step(compute, rows_of(rows, 1024))
        blocks = [each for each in compute.model.modules() if isinstance(each, Block)]
        again.append(sum(block.recompute for block in blocks))
    assert again[0] > again[1] == 0
