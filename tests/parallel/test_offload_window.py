"""How long a copy may take: as far as the moved layers stand apart, never more than pays."""

import pytest
import torch
from test_offload import gradients, tiny

from fivefold.parallel.offload import widest_window
from fivefold.train.compute import ComputeModel

PLAIN = dict.fromkeys(range(12), 1)
WITH_MTP = {**dict.fromkeys(range(5), 1), 5: 3}


@pytest.mark.parametrize(
    ("moving", "window"),
    [
        ((), 1),
        (range(12), 1),
        ((0, 2, 4), 2),
        ((0, 3, 6), 3),
        ((1, 3, 10), 2),  # behind the last one the next microbatch begins
        ((0, 4), 4),
        ((0, 9), 1),  # two runs follow the last one, and it would not leave for longer copies
        ((0,), 4),
        ((11,), 4),  # it comes back at once and never leaves
    ],
)
def test_window_is_the_least_distance(moving: tuple[int, ...], window: int) -> None:
    assert widest_window(moving, PLAIN) == window


def test_layer_of_several_runs_moves_one_after_the_other() -> None:
    assert widest_window((0, 3), WITH_MTP) == 3
    assert widest_window((0, 3, 5), WITH_MTP) == 1


def test_layers_apart_take_their_time_and_keep_their_bits() -> None:
    model = tiny()
    expected = gradients(ComputeModel(model, torch.float32), model, "frozen")
    model = tiny()
    compute = ComputeModel(model, torch.float32, offload=(0, 3), least_bytes=64)
    found = gradients(compute, model, "frozen")
    assert compute.offloader is not None
    ledger = compute.offloader.ledger
    assert compute.offloader.window == 3
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {layer for layer, moved in ledger.layers.items() if moved.out_bytes} == {0, 3}
    assert ledger.late == 0
    assert ledger.in_bytes == ledger.out_bytes
    ledger.check_idle()
