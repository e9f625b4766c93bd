"""Groups against a count over coordinates; collectives against sums, bytes against formulas."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from team import CaseError, Team

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.parallel import collectives
from fivefold.parallel.config import AXES, ParallelConfig, rank_table
from fivefold.parallel.mesh import ALONE, Mesh, World, single

SIZES = st.integers(1, 3)


def coordinates(config: ParallelConfig) -> list[dict[str, int]]:
    """Return each rank's place on the axes, by counting with tp fastest."""
    ranges = [range(size) for size in config.axis_sizes.values()]
    return [dict(zip(AXES, place, strict=True)) for place in itertools.product(*ranges)]


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.sets(st.sampled_from(AXES), min_size=1))
def test_groups_are_the_ranks_that_differ_on_their_axes_alone(
    dp: int, fsdp: int, tp: int, cp: int, pp: int, axes: set[str]
) -> None:
    config = ParallelConfig(dp=dp, fsdp=fsdp, tp=tp, cp=cp, pp=pp)
    places = coordinates(config)
    table = rank_table(config, *axes)
    assert sorted(itertools.chain(*table)) == list(range(config.size))
    for group in table:
        fixed = {tuple(places[r][a] for a in AXES if a not in axes) for r in group}
        moving = [tuple(places[r][a] for a in AXES if a in axes) for r in group]
        assert len(fixed) == 1
        assert moving == sorted(set(moving))
        assert list(group) == sorted(group)


def test_expert_groups_are_neighbours_within_a_pipeline_stage() -> None:
    config = ParallelConfig(pp=2, dp=2, tp=2, ep=2)
    assert rank_table(config, "ep") == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert rank_table(config, "edp") == [(0, 2), (1, 3), (4, 6), (5, 7)]


@given(SIZES, st.sampled_from((1, 2, 4, 6)), SIZES, SIZES, st.integers(1, 12))
def test_experts_are_sharded_among_ranks_along_fsdp_that_hold_the_same(
    dp: int, fsdp: int, cp: int, tp: int, ep: int
) -> None:
    assume(dp * fsdp * cp * tp % ep == 0)
    config = ParallelConfig(dp=dp, fsdp=fsdp, cp=cp, tp=tp, ep=ep)
    alike = [set(ranks) for ranks in rank_table(config, "edp")]
    along = [set(ranks) for ranks in rank_table(config, "fsdp")]
    same = {frozenset(ranks & line) for ranks in alike for line in along if ranks & line}
    found = [*map(frozenset, rank_table(config, "efsdp"))]
    assert {len(ranks) for ranks in found} == {config.expert_shards}
    # Where they do not come round evenly, each rank keeps its own.
    is_even = len({len(ranks) for ranks in same}) == 1
    assert set(found) == (same if is_even else {frozenset({rank}) for rank in range(config.size)})


@given(SIZES, SIZES, st.integers(1, 2), st.sampled_from((1, 2, 3, 4, 6)))
def test_experts_cross_rows_where_their_ranks_do(dp: int, cp: int, tp: int, ep: int) -> None:
    assume(dp * cp * tp % ep == 0)
    config = ParallelConfig(dp=dp, cp=cp, tp=tp, ep=ep)
    alike = [set(ranks) for ranks in rank_table(config, "cp", "tp")]
    inside = [any(set(ranks) <= rows for rows in alike) for ranks in rank_table(config, "ep")]
    assert config.experts_cross_rows == (not all(inside))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dp": 2, "ep": 3}, "`ep` to divide the 2 ranks"),
        ({"fsdp": 2, "zero": 1}, "Leave `zero` out"),
        ({"dp": 4, "zero": 3}, "Set `fsdp=4`"),
    ],
)
def test_impossible_meshes_say_what_to_do(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(ParallelConfig, fields, where="parallel")


def test_wrong_number_of_processes_names_the_command() -> None:
    with pytest.raises(ConfigError, match="--nproc-per-node 4"):
        Mesh(ParallelConfig(dp=2, tp=2), ALONE)


def test_default_zero_stage_follows_the_axes() -> None:
    assert ParallelConfig(dp=2).zero_stage == 1
    assert ParallelConfig(fsdp=2).zero_stage == 3
    assert ParallelConfig(dp=2, zero=0).zero_stage == 0


def test_one_process_communicates_nothing() -> None:
    mesh = Mesh()
    group = mesh.data
    tensor = torch.arange(4.0)
    assert collectives.all_reduce(tensor.clone(), group).equal(tensor)
    assert collectives.all_to_all(tensor, [4], [4], group).equal(tensor)
    whole = torch.empty(4)
    assert collectives.all_gather(whole, tensor, single()) is None
    assert whole.equal(tensor)
    assert mesh.share("value") == "value"
    assert mesh.ledger.totals == {}


def run_collectives(world: World) -> dict[str, object]:
    mesh = Mesh(ParallelConfig(dp=world.size), world)
    group, rank = mesh.data, world.rank
    found: dict[str, object] = {
        "sum": collectives.all_reduce(torch.full((3,), rank + 1.0), group),
        "max": collectives.all_reduce(torch.tensor([rank, -rank]), group, "max"),
    }
    shard, whole = torch.empty(2), torch.arange(2.0 * world.size) * (rank + 1)
    work = collectives.reduce_scatter(shard, whole, group)
    assert work is not None
    work.wait()
    found["shard"] = shard
    gathered = torch.empty(2 * world.size)
    work = collectives.all_gather(gathered, torch.full((2,), float(rank)), group)
    assert work is not None
    work.wait()
    found["gathered"] = gathered
    # Rank r sends r + 1 rows of two numbers to each rank.
    sent = torch.full(((rank + 1) * world.size, 2), float(rank))
    counts = [r + 1 for r in range(world.size)]
    received = collectives.all_to_all(sent, [rank + 1] * world.size, counts, group)
    found["received"] = received[:, 0]
    found["shared"] = mesh.share({"rank": rank})
    found["ledger"] = {op: mesh.ledger.sent_bytes(op) for op, _ in mesh.ledger.totals}
    found["numbers"] = collectives.sum_values([rank, 0.5], group, world.device)
    return found


@pytest.mark.dist
def test_collectives_and_their_bytes(pair: Team) -> None:
    results = pair.run(run_collectives)
    for rank, found in enumerate(results):
        assert found["sum"].tolist() == [3.0] * 3  # pyright: ignore[reportAttributeAccessIssue]
        assert found["max"].tolist() == [1, 0]  # pyright: ignore[reportAttributeAccessIssue]
        assert found["shard"].tolist() == [6.0 * rank, 6.0 * rank + 3]  # pyright: ignore[reportAttributeAccessIssue]
        assert found["gathered"].tolist() == [0, 0, 1, 1]  # pyright: ignore[reportAttributeAccessIssue]
        assert found["received"].tolist() == [0, 1, 1]  # pyright: ignore[reportAttributeAccessIssue]
        assert found["shared"] == {"rank": 0}
        assert found["numbers"] == [1.0, 1.0]
        assert found["ledger"] == {
            "all_reduce": 12 + 16,
            "reduce_scatter": 8,
            "all_gather": 8,
            "all_to_all": (rank + 1) * 8,
        }


def fail_on_one(world: World) -> None:
    if world.rank == 1:
        raise ValueError("planted")


@pytest.mark.dist
def test_team_names_the_rank_that_failed_and_starts_anew(pair: Team) -> None:
    with pytest.raises(CaseError, match=r"(?s)rank 1 of 2:.*planted"):
        pair.run(fail_on_one)
    assert len(pair.run(run_collectives)) == 2
