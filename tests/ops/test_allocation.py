"""The recorder of allocations counts each storage once, from its first tensor to its last view."""

import torch
from allocation import AllocationLedger


def test_views_are_not_counted_again() -> None:
    with AllocationLedger() as ledger:
        x = torch.zeros(100)
        views = [x[:10], x.view(10, 10).T, x.expand(5, 100), *x.split(30)]
        x.add_(1)
        assert ledger.live_bytes == ledger.peak_bytes == 400
        assert ledger.shapes == [(100,)]
        del x, views
    assert (ledger.live_bytes, ledger.peak_bytes) == (0, 400)


def test_memory_lives_as_long_as_its_last_view() -> None:
    with AllocationLedger() as ledger:
        x = torch.zeros(100)
        view = x[:10]
        del x
        y = torch.ones(50)
        assert ledger.live_bytes == 600
        del view
        assert ledger.live_bytes == 200
        y = y + 1
        assert (ledger.live_bytes, ledger.peak_bytes) == (200, 600)


def test_a_view_that_an_operation_returns_counts_with_all_of_its_memory() -> None:
    with AllocationLedger() as ledger:
        values, indices = torch.arange(6.0).view(2, 3).max(1)
        del values
        assert ledger.live_bytes == indices.untyped_storage().nbytes() == 16
    assert ledger.peak_bytes == 24 + 8 + 16


def test_what_was_there_before_is_free() -> None:
    x = torch.zeros(100)
    with AllocationLedger() as ledger:
        kept = [x.view(10, 10), x.detach(), x.mul_(2)]
        assert ledger.peak_bytes == 0
        total = kept[0].sum()
        assert ledger.live_bytes == total.nbytes == 4


def test_gradients_count_until_they_are_dropped() -> None:
    x = torch.zeros(100, requires_grad=True)
    with AllocationLedger() as ledger:
        (x * 2).sum().backward()
        assert ledger.live_bytes == 400
        x.grad = None
        assert ledger.live_bytes == 0


def test_memory_that_is_used_again_counts_again() -> None:
    with AllocationLedger() as ledger:
        for _ in range(50):
            x = torch.zeros(100)
            del x
    assert len(ledger.shapes) == 50
    assert (ledger.live_bytes, ledger.peak_bytes) == (0, 400)
