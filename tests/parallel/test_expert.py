"""The dispatcher of expert parallelism: values, gradients, idle experts, ways, bytes, faults."""

import dataclasses

import pytest
import torch
from team import CaseError, Team
from torch import Tensor

from fivefold.ops.experts import run_experts
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.expert import ExpertDispatcher
from fivefold.parallel.expert_exchange import Flat, delivery
from fivefold.parallel.mesh import Mesh, World

pytestmark = pytest.mark.dist

EXPERTS, WIDTH, HIDDEN, CHOSEN = 8, 16, 12, 2
EVERYWHERE = [9, 7, 5, 3]
"""Tokens of each rank."""


def make_inputs(ranks: int, tokens: list[int], choice: str, dtype: torch.dtype) -> list[Tensor]:
    """Return x, chosen experts, weights, output gradients and expert weights of all ranks."""
    generator = torch.Generator().manual_seed(5)
    count = sum(tokens[:ranks])
    x_TD = torch.randn(count, WIDTH, generator=generator, dtype=dtype)
    scores = torch.rand(count, EXPERTS, generator=generator)
    if choice == "one_rank":
        scores[:, 2:] = -1.0
    chosen_TA = scores.topk(CHOSEN).indices.sort(1).values
    if choice == "one_expert":
        chosen_TA = torch.full((count, 1), 5)
    weight_TA = torch.rand(chosen_TA.shape, generator=generator).to(dtype)
    grad_TD = torch.randn(count, WIDTH, generator=generator, dtype=dtype)
    gate_up = torch.randn(EXPERTS, 2 * HIDDEN, WIDTH, generator=generator, dtype=dtype)
    down = torch.randn(EXPERTS, WIDTH, HIDDEN, generator=generator, dtype=dtype)
    return [x_TD, chosen_TA, weight_TA, grad_TD, gate_up, down]


def run_and_differentiate(dispatch, inputs: list[Tensor]) -> list[Tensor]:
    """Return output and gradients of x, router weights and both expert weights."""
    x, chosen, weight, grad, gate_up, down = inputs
    leaves = [t.clone().requires_grad_() for t in (x, weight, gate_up, down)]
    out = dispatch(leaves[0], chosen, leaves[1], leaves[2], leaves[3])
    out.backward(grad)
    found = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in found), "a gradient is missing"
    return [out.detach(), *(gradient for gradient in found if gradient is not None)]


def dispatch_case(
    world: World, tokens: list[int], choice: str, dtype: torch.dtype, ranks_per_node: int | None
) -> tuple[list[Tensor], float]:
    mesh = Mesh(ParallelConfig(dp=world.size, ep=world.size), world)
    inputs = make_inputs(world.size, tokens, choice, dtype)
    begin = sum(tokens[: world.rank])
    own = [part[begin : begin + tokens[world.rank]] for part in inputs[:4]]
    run = EXPERTS // world.size
    experts = [part[world.rank * run : (world.rank + 1) * run] for part in inputs[4:]]
    dispatch = ExpertDispatcher(delivery(mesh, ranks_per_node), EXPERTS)
    mesh.ledger.reset()
    found = run_and_differentiate(dispatch, [*own, *experts])
    return found, mesh.ledger.sent_bytes("all_to_all")


def joined(results: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


@pytest.mark.parametrize("choice", ["spread", "one_rank", "one_expert"])
@pytest.mark.parametrize("tokens", [EVERYWHERE, [0, 6, 0, 1], [4, 0, 0, 0]])
@pytest.mark.parametrize("ranks", [2, 4])
def test_dispatch_equals_one_process(
    pair: Team, four: Team, ranks: int, tokens: list[int], choice: str
) -> None:
    team = pair if ranks == 2 else four
    inputs = make_inputs(ranks, tokens, choice, torch.float64)
    wanted = run_and_differentiate(run_experts, inputs)
    results = team.run(dispatch_case, tokens, choice, torch.float64, None)
    for found, expected in zip(joined([r for r, _ in results]), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dispatch_is_bitwise_equal_where_one_rank_has_all_tokens(
    pair: Team, dtype: torch.dtype
) -> None:
    # Experts then see the same rows in the same order; what is left is the order of their sums.
    tokens = [21, 0]
    wanted = run_and_differentiate(run_experts, make_inputs(2, tokens, "spread", dtype))
    results = pair.run(dispatch_case, tokens, "spread", dtype, None)
    for found, expected in zip(joined([r for r, _ in results]), wanted, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [EVERYWHERE, [0, 6, 0, 1]])
def test_two_levels_are_bitwise_equal_to_one(four: Team, tokens: list[int]) -> None:
    flat = four.run(dispatch_case, tokens, "spread", torch.float32, None)
    levels = four.run(dispatch_case, tokens, "spread", torch.float32, 2)
    for (found, _), (expected, _) in zip(levels, flat, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bytes_are_those_of_the_formula(four: Team) -> None:
    results = four.run(dispatch_case, EVERYWHERE, "spread", torch.float32, None)
    chosen_TA = make_inputs(4, EVERYWHERE, "spread", torch.float32)[1]
    source = torch.repeat_interleave(torch.arange(4), torch.tensor(EVERYWHERE))[:, None]
    target = chosen_TA // (EXPERTS // 4)
    row, weight = 4 * WIDTH, 4
    # Three numbers of header and the counts of two experts for each other rank.
    counts = 3 * 8 * (3 + EXPERTS // 4)
    for rank, (_, sent) in enumerate(results):
        out = int(((source == rank) & (target != rank)).sum())
        back = int(((source != rank) & (target == rank)).sum())
        # Out: rows and weights, and gradients of results; back: results, gradients of both.
        assert sent == out * (2 * row + weight) + back * (2 * row + weight) + counts


def two_level_calls(world: World) -> dict[str, int]:
    mesh = Mesh(ParallelConfig(dp=4, ep=4), world)
    way = delivery(mesh, 2)
    mesh.ledger.reset()
    rows = torch.arange(8.0)[:, None] + 100 * world.rank
    way(rows, [2, 2, 2, 2], [2, 2, 2, 2])
    return {name: round(total.sent_bytes) for (_, name), total in mesh.ledger.totals.items()}


def test_two_levels_send_a_row_at_most_once_within_and_once_across(four: Team) -> None:
    # Two rows for each rank: four of eight to the other place of the node (and counts of two
    # nodes), four to the other node.
    assert four.run(two_level_calls) == [{"ep-node": 4 * 4 + 2 * 8, "ep-across": 4 * 4}] * 4


def wrong_order(world: World) -> None:
    mesh = Mesh(ParallelConfig(dp=world.size, ep=world.size), world)
    group = mesh.group("ep")
    if world.rank == 1:
        group = dataclasses.replace(group, ranks=(1, 0), rank=0)
    inputs = make_inputs(1, [6], "spread", torch.float32)
    run_and_differentiate(ExpertDispatcher(Flat(group), EXPERTS), [*inputs[:4], *halves(inputs, 0)])


def wrong_layer(world: World) -> None:
    mesh = Mesh(ParallelConfig(dp=world.size, ep=world.size), world)
    inputs = make_inputs(1, [6], "spread", torch.float32)
    dispatch = ExpertDispatcher(Flat(mesh.group("ep")), EXPERTS, layer=3 + world.rank)
    run_and_differentiate(dispatch, [*inputs[:4], *halves(inputs, world.rank)])


def halves(inputs: list[Tensor], rank: int) -> list[Tensor]:
    return [part.chunk(2)[rank] for part in inputs[4:]]


def test_a_group_in_another_order_names_the_ranks(pair: Team) -> None:
    with pytest.raises(
        CaseError, match=r"rank 1's tokens for rank 0 .* those of rank 1 for rank 1"
    ):
        pair.run(wrong_order)


def test_ranks_in_different_layers_name_the_rank(pair: Team) -> None:
    with pytest.raises(CaseError, match=r"rank 1's tokens .* layer 3.* rank 1 .* layer 4"):
        pair.run(wrong_layer)


def test_nodes_that_cut_the_group_are_refused(four: Team) -> None:
    with pytest.raises(CaseError, match="whole nodes of 3 ranks"):
        four.run(uneven_nodes)


def uneven_nodes(world: World) -> None:
    delivery(Mesh(ParallelConfig(dp=4, ep=4), world), 3)
