"""Every schedule on real processes: losses and gradients have the bits of one process."""

import pytest
import torch
from piped import EMBEDDING, ONE_BY_ONE, Case, cut_model, pipeline_group, whole_step
from team import Team, World

from fivefold.models.surroundings import IndexerMode
from fivefold.parallel.pipeline.split import MtpPlacement

pytestmark = pytest.mark.dist


def differences(world: World, case: Case) -> tuple[list[str], dict[str, float], float]:
    """Return names of gradients seen, those that differ and by how much, and the loss's error."""
    losses, wanted = whole_step(case)
    piped = cut_model(case, pipeline_group(world, case.ranks))
    shares = torch.stack(piped.runtime.step(piped.batches(ONE_BY_ONE)))
    torch.distributed.all_reduce(shares)
    if piped.shared is not None:
        piped.shared.add_gradients()
    found = piped.gradients()
    differing = {
        name: float((gradient - wanted[name]).abs().max() / wanted[name].abs().max())
        for name, gradient in found.items()
        if not torch.equal(gradient, wanted[name])
    }
    error = float((shares - torch.stack(losses)).abs().max() / torch.stack(losses).max())
    return sorted(found), differing, error


def check(team: Team, case: Case) -> None:
    results = team.run(differences, case)
    seen = {name for names, _, _ in results for name in names}
    assert seen == set(whole_step(case)[1])
    tight = 1e-12 if case.dtype == torch.float64 else 1e-5
    for _, differing, error in results:
        assert error < tight
        # Two stages look tokens up: their sums are added at the end, in another order.
        assert differing.pop(EMBEDDING, 0.0) < tight
        assert differing == {}


@pytest.mark.parametrize(
    ("schedule", "mtp"),
    [
        ("1f1b", "before_last"),
        ("interleaved", "last"),
        ("zb_h1", "last"),
        ("zb_h2", "before_last"),
        ("zb_v", "before_last"),
        ("zb_v", "last"),
        ("v_half", "last"),
    ],
)
def test_two_ranks(pair: Team, schedule: str, mtp: MtpPlacement) -> None:
    check(pair, Case(schedule, mtp=mtp))


@pytest.mark.parametrize("indexer", ["sparse", "warm_up"])
@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
def test_two_ranks_whose_indexers_learn(pair: Team, schedule: str, indexer: IndexerMode) -> None:
    check(pair, Case(schedule, indexer=indexer))


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "zb_h2"])
def test_four_ranks_of_one_stage(four: Team, schedule: str) -> None:
    check(four, Case(schedule, ranks=4, layers=4, indexer="sparse"))


@pytest.mark.parametrize("schedule", ["interleaved", "zb_v", "v_half"])
def test_four_ranks_of_two_stages(four: Team, schedule: str) -> None:
    check(four, Case(schedule, ranks=4, layers=5, indexer="sparse"))


def test_order_of_sums_alone_separates_the_embedding(four: Team) -> None:
    check(four, Case("zb_v", ranks=4, layers=5, dtype=torch.float64))


def test_bounded_weight_gradients_change_nothing(pair: Team) -> None:
    check(pair, Case("zb_h2", limit_bytes=200_000))


def test_recomputed_blocks_defer_once(pair: Team) -> None:
    check(pair, Case("zb_h1", indexer="sparse", recompute=True))
