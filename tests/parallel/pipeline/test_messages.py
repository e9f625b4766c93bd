"""What a step holds: buffers, sends, masks, deferred gradients; shapes that change; copies."""

import weakref
from typing import Any

import pytest
import torch
from piped import ONE_BY_ONE, ROWS, Case, cut_model, pipeline_group, whole_step
from team import Team, World
from torch import nn

from fivefold.data.loader import Rows
from fivefold.models.surroundings import Surroundings
from fivefold.parallel.pipeline.message import Mailbox, MessageLedger
from fivefold.parallel.pipeline.program import Message

pytestmark = pytest.mark.dist


def cut_rows(rows: Rows, tokens: int) -> Rows:
    """Keep the first `tokens` of each row."""
    end = tokens + 1
    return Rows(rows.ids[:, :end], rows.document[:, :end], rows.positions[:, :end], rows.source)


SHAPES = [
    [ROWS.part(slice(0, 2)), ROWS.part(slice(2, 3)), cut_rows(ROWS.part(slice(3, 5)), 9)],
    [cut_rows(ROWS.part(slice(0, 1)), 12), ROWS.part(slice(1, 6)), ROWS.part(slice(6, 8))],
]
"""Two steps of three microbatches, no two of one shape next to each other."""


def several_shapes(world: World, case: Case) -> list[str]:
    """Take the steps of `SHAPES` on one runtime; return names of gradients that differ."""
    piped = cut_model(case, pipeline_group(world, case.ranks), 3)
    differing = []
    for step, parts in enumerate(SHAPES):
        for stage in piped.stages.values():
            stage.zero_grad()
        piped.runtime.step(piped.batches(parts))
        _, wanted = whole_step(case, parts)
        differing += [
            f"step {step}: {name}"
            for name, gradient in piped.gradients().items()
            if "embed" not in name and not torch.equal(gradient, wanted[name])
        ]
    return differing


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_shapes_change_within_and_between_steps(pair: Team, schedule: str) -> None:
    assert pair.run(several_shapes, Case(schedule)) == [[], []]


def holdings(world: World, case: Case, count: int) -> list[tuple[int, ...]]:
    """Return, a stage, peak bytes of buffers, peak sends, and what the store counted."""
    piped = cut_model(case, pipeline_group(world, case.ranks), count)
    piped.runtime.step(piped.batches((ONE_BY_ONE * 4)[:count]))
    found = []
    for index, stage in piped.runtime.stages.items():
        ledger, store = stage.ledger, piped.stores[index].ledger
        assert (ledger.buffer_bytes, ledger.unfinished) == (0, 0)
        counted = (store.deferred, store.computed, store.early)
        found.append((ledger.peak_buffer_bytes, ledger.peak_unfinished, *counted))
    return found


def test_a_longer_step_holds_no_more(pair: Team) -> None:
    case = Case("zb_h1")
    short, long = (pair.run(holdings, case, count) for count in (6, 24))
    for before, after in zip(short, long, strict=True):
        for (bytes_6, sends_6, put_6, *_), (bytes_24, sends_24, put_24, done, early) in zip(
            before, after, strict=True
        ):
            assert bytes_24 <= bytes_6
            assert sends_24 <= sends_6
            assert (put_24, done, early) == (4 * put_6, put_24, 0)
    # The last stage receives three states, of which buffers of at most two microbatches exist.
    assert 0 < long[1][0][0] <= 2 * 3 * 16 * 64 * 4


def most_surroundings(world: World, case: Case, count: int) -> int:
    """Return how many surroundings that layers have met exist at once, at most."""
    piped = cut_model(case, pipeline_group(world, case.ranks), count)
    met: dict[int, weakref.ref[Surroundings]] = {}
    alive: list[int] = []

    def meet(_: nn.Module, args: tuple[Any, ...]) -> None:
        met[id(args[1])] = weakref.ref(args[1])
        alive.append(sum(around() is not None for around in met.values()))

    for block in piped.model.layers:
        block.register_forward_pre_hook(meet)
    piped.runtime.step(piped.batches((ONE_BY_ONE * 4)[:count]))
    return max(alive, default=0)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_masks_of_a_longer_step_are_no_more(pair: Team, schedule: str) -> None:
    case = Case(schedule)
    short, long = (pair.run(most_surroundings, case, count) for count in (6, 24))
    assert all(after <= before for before, after in zip(short, long, strict=True))
    # Those of two stages, whose microbatches are under way.
    assert 0 < max(long) <= 2 * 4


def shared_copy(world: World, case: Case) -> tuple[bool, float, bool]:
    """Spoil a copy of the embedding; return what copying and summing make of it."""
    piped = cut_model(case, pipeline_group(world, case.ranks))
    assert piped.shared is not None
    (weight,) = piped.shared.parameters.values()
    original = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(world.rank + 7) if not piped.shared.is_owner else None
    piped.shared.copy_from_owner()
    equal = torch.equal(weight, original)
    weight.grad = torch.full_like(weight, float(10**world.rank)) if world.rank != 1 else None
    piped.shared.add_gradients()
    assert weight.grad is not None
    return equal, float(weight.grad.mean()), piped.shared.is_owner


def test_copies_of_the_embedding_are_one_parameter(pair: Team) -> None:
    case = Case("1f1b", mtp="last")
    assert pair.run(shared_copy, case) == [(True, 1.0, True), (True, 1.0, False)]


def test_no_buffer_is_received_into_twice() -> None:
    mailbox = Mailbox(MessageLedger(), torch.device("cpu"))
    mailbox.allocate(0, [Message(torch.Size([2]), torch.float32)])
    with pytest.raises(AssertionError, match="received twice"):
        mailbox.allocate(0, [Message(torch.Size([2]), torch.float32)])
    with pytest.raises(AssertionError, match="never used"):
        mailbox.check_idle()
