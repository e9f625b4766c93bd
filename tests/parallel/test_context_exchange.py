"""Tensors between ranks that hold other tokens: values, gradients, ledgers; and the selection."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from team import CaseError, Team
from torch import Tensor

from fivefold.models.indexer import IndexQuery
from fivefold.models.surroundings import Surroundings, make_surroundings
from fivefold.ops import sparse_index
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.context.assignment import Assignment, Run, assign
from fivefold.parallel.context.exchange import gathered_bytes, swap, swap_flat, swapped_bytes
from fivefold.parallel.context.selection import select
from fivefold.parallel.context.shard import TokenShard, make_shard
from fivefold.parallel.context.two_phase import TwoPhase
from fivefold.parallel.context.work import TokenWork
from fivefold.parallel.ledger import Ledger
from fivefold.parallel.mesh import Group, Mesh, World

UNEVEN: Assignment = [[Run(0, 0, 3), Run(1, 6, 7)], [Run(0, 3, 7)], [Run(1, 0, 1)], [Run(1, 1, 6)]]
"""Two rows of 7 tokens among 4 ranks that hold 4, 4, 1 and 5."""


def shard_of(group: Group, assignment: Assignment, rows: int, tokens: int) -> TokenShard:
    return make_shard(assignment, rows, tokens, group, swap_flat(group), torch.device("cpu"))


def gather_and_return(world: World) -> tuple[Tensor, Tensor, Tensor, float]:
    """Gather tokens of uneven ranks; a rank's loss weighs all of them by its number + 1."""
    mesh = Mesh(ParallelConfig(cp=4), world)
    shard = shard_of(mesh.group("cp"), UNEVEN, 2, 7)
    whole = torch.arange(28.0).view(2, 7, 2)
    own = shard.take(whole).requires_grad_()
    found = shard.gather(own)
    (found * whole * (world.rank + 1)).sum().backward()
    assert own.grad is not None
    return found.detach(), own.grad, shard.take(whole), mesh.ledger.sent_bytes()


@pytest.mark.dist
def test_gather_brings_all_tokens_and_the_sum_of_their_gradients(four: Team) -> None:
    whole = torch.arange(28.0).view(2, 7, 2)
    for found, grad, own, sent in four.run(gather_and_return):
        assert torch.equal(found, whole)
        # 1 + 2 + 3 + 4 from the four ranks.
        assert torch.equal(grad, own * 10)
        # Each rank is padded to 5 tokens.
        assert sent == 2 * gathered_bytes(4 * 5, 2, 4, 4)


def swap_heads(world: World) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give heads away and take them back; the gradient of a head is its number."""
    group = Mesh(ParallelConfig(cp=4), world).group("cp")
    shard = shard_of(group, UNEVEN, 2, 7)
    whole = torch.arange(2 * 7 * 8 * 3.0).view(2, 7, 8, 3)
    own = shard.take(whole).requires_grad_()
    swapped = shard.heads_for_tokens(own)
    numbers = torch.arange(8.0).view(4, 2)[world.rank]
    (swapped * numbers[:, None]).sum().backward()
    assert own.grad is not None
    return swapped.detach(), shard.tokens_for_heads(swapped).detach(), own.detach(), own.grad


@pytest.mark.dist
def test_heads_travel_for_tokens_and_back(four: Team) -> None:
    whole = torch.arange(2 * 7 * 8 * 3.0).view(2, 7, 8, 3)
    for rank, (swapped, back, own, grad) in enumerate(four.run(swap_heads)):
        assert torch.equal(swapped, whole[:, :, 2 * rank : 2 * rank + 2])
        assert torch.equal(back, own)
        assert torch.equal(grad, torch.arange(8.0)[:, None].expand_as(own))


def owners(world: World) -> Tensor:
    group = Mesh(ParallelConfig(cp=4), world).group("cp")
    shard = shard_of(group, UNEVEN, 2, 7)
    whole = torch.arange(14.0).view(2, 7, 1)
    assert torch.equal(shard.row_sums(shard.take(whole)[0])[0], rows_sum(shard, whole))
    return shard.sum_to_owners(whole * (world.rank + 1)) - 10 * shard.take(whole)


def rows_sum(shard: TokenShard, whole: Tensor) -> Tensor:
    own = [whole[run.row, run.begin : run.end].sum(0) for run in shard.runs if run.row == 0]
    return torch.stack(own).sum(0) if own else torch.zeros(1)


@pytest.mark.dist
def test_sums_go_to_the_owners_of_tokens(four: Team) -> None:
    assert all(not difference.any() for difference in four.run(owners))


def exchange_both_ways(world: World, config: ParallelConfig, nodes: int) -> dict[str, object]:
    """Swap parts in one phase and in two, in fp32 with gradients."""
    mesh = Mesh(config, world)
    group = mesh.group("cp")
    generator = torch.Generator().manual_seed(world.rank)
    x = torch.randn(group.size, 5, 3, generator=generator)
    found = []
    for exchange in (swap_flat(group), TwoPhase(mesh, "cp", nodes)):
        mesh.ledger.reset()
        own = x.clone().requires_grad_()
        result = swap(own, exchange)
        sent = {name: mesh.ledger.sent_bytes(None, name) for _, name in mesh.ledger.totals}
        (result * (1 + world.rank)).sum().backward()
        assert own.grad is not None
        found.append((result.detach(), own.grad, sent))
    flat, phased = found
    return {
        "equal": torch.equal(flat[0], phased[0]) and torch.equal(flat[1], phased[1]),
        "grad": flat[1][:, 0, 0].tolist(),
        "flat": flat[2],
        "phased": phased[2],
    }


@pytest.mark.dist
@pytest.mark.parametrize(
    ("config", "per_node"),
    [
        (ParallelConfig(cp=4), 1),
        (ParallelConfig(cp=4), 2),
        (ParallelConfig(cp=4), 4),
        (ParallelConfig(dp=2, cp=2), 2),
        (ParallelConfig(cp=2, tp=2), 1),
    ],
)
def test_two_phases_bring_what_one_brings(
    four: Team, config: ParallelConfig, per_node: int
) -> None:
    ranks = config.cp
    nodes = ranks // per_node
    for found in four.run(exchange_both_ways, config, per_node):
        assert found["equal"]
        assert found["flat"] == {"cp": swapped_bytes(5, ranks * 3, 4, ranks)}
        whole = {
            "cp within nodes": swapped_bytes(5, ranks * 3, 4, per_node),
            "cp between nodes": swapped_bytes(5, ranks * 3, 4, nodes),
        }
        assert found["phased"] == {name: sent for name, sent in whole.items() if sent}


def begin_two_phases(world: World) -> None:
    TwoPhase(Mesh(ParallelConfig(cp=4), world), "cp", 3)


@pytest.mark.dist
def test_nodes_that_do_not_divide_are_refused(four: Team) -> None:
    with pytest.raises(CaseError, match="ranks per node that divide the 4 of `cp`"):
        four.run(begin_two_phases)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from(["places", "mask"]),
    st.integers(0, 99),
)
def test_ties_fall_as_in_one_process(
    lengths: list[int], ranks: int, k: int, kind: str, seed: int
) -> None:
    # Given scores of three values, and shards in any order,
    tokens = sum(lengths)
    ranks = min(ranks, tokens)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    documents_BT = torch.stack([documents, documents.flip(0)])
    generator = torch.Generator().manual_seed(seed)
    whole = IndexQuery(
        torch.randint(-1, 2, (2, tokens, 1, 1), generator=generator).double(),
        torch.randint(0, 2, (2, tokens, 1), generator=generator).double(),
        torch.ones(2, tokens, 1).double(),
    )
    work = TokenWork(1.0, 1.0, 0.0, 0)
    assignment = assign("balanced", documents_BT.numpy(), ranks, work)
    # when every rank selects for its own queries,
    around = surroundings_of(documents_BT, kind)
    found = torch.zeros(2 * tokens, tokens, dtype=torch.bool)
    for rank in range(ranks):
        group = Group("cp", tuple(range(ranks)), rank, None, Ledger())
        shard = shard_of(group, assignment, 2, tokens)
        query = IndexQuery(shard.take(whole.q_BTIJ), whole.key_BSJ, shard.take(whole.weight_BTI))
        chosen = select(query, around, shard, k, None)
        for index, place in enumerate(shard.place_N.tolist()):
            row = place // tokens
            if chosen.places_BTK is not None:
                places = chosen.places_BTK[0, index]
                found[place, (places[places >= 0] - row * tokens).long()] = True
            elif chosen.mask_BTS is not None:
                found[place] = chosen.mask_BTS[0, index]
            else:
                found[place] = around_visible(documents_BT, row)[place % tokens]
    # then together they keep what one process keeps.
    kept = sparse_index.reference(*whole, k, documents_BT)
    wanted = torch.zeros(2, tokens, tokens + 1, dtype=torch.bool)
    wanted.scatter_(2, kept.long().where(kept >= 0, tokens), True)
    assert np.array_equal(found.view(2, tokens, tokens).numpy(), wanted[..., :tokens].numpy())


def around_visible(documents_BT: Tensor, row: int) -> Tensor:
    return (documents_BT[row, :, None] == documents_BT[row]).tril()


def surroundings_of(documents_BT: Tensor, kind: str) -> Surroundings:
    tokens = documents_BT.shape[1]
    # The sparse mode always gathers; at so few keys the frozen one always masks.
    return make_surroundings(
        torch.zeros(1),
        documents_BT,
        None,
        queries=tokens,
        absorbed=False,
        indexer="sparse" if kind == "places" else "frozen",
    )
