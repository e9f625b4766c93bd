"""Two rolling gradient buffers on pp2 x dp2: the gradients of one process, never a third buffer."""

from typing import NamedTuple

import pytest
import torch
from piped import EMBEDDING, ONE_BY_ONE, Case, cut_model, whole_step
from team import Team, World
from torch import nn

from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, single
from fivefold.parallel.pipeline.rolling import RollingGradients
from fivefold.parallel.pipeline.stage import ModelStage

pytestmark = pytest.mark.dist


class Rolled(NamedTuple):
    error: float
    names: set[str]
    peak_live: int
    calls: int
    sent_bytes: int
    lengths: list[int]


def rolled(world: World, case: Case, steps: int) -> Rolled:
    """Compare the shards after some steps with one process, and return what the ledgers counted."""
    _, wanted = whole_step(case)
    mesh = Mesh(ParallelConfig(pp=2, dp=2), world)
    pipeline, data = mesh.group("pp"), mesh.group("dp")
    half = len(ONE_BY_ONE) // 2
    parts = ONE_BY_ONE[data.rank * half : (data.rank + 1) * half]
    embeddings: set[nn.Parameter] = set()

    def make_keeper(stages: dict[int, ModelStage]) -> RollingGradients:
        embeddings.update(
            parameter
            for stage in stages.values()
            for name, parameter in stage.named_parameters()
            if name == EMBEDDING
        )
        return RollingGradients(stages, data, apart=embeddings)

    piped = cut_model(case, pipeline, half, make_keeper)
    rolling = piped.keeper
    assert isinstance(rolling, RollingGradients)
    mesh.ledger.reset()
    for _ in range(steps):
        rolling.begin()
        for weight in embeddings:
            weight.grad = None
        piped.runtime.step(piped.batches(parts))
        rolling.finish()
    shards = rolling.shards
    sent, calls = mesh.ledger.sent_bytes("reduce_scatter"), mesh.ledger.calls("reduce_scatter")
    error, names = 0.0, set()
    for stage, module in piped.stages.items():
        pieces = [torch.empty_like(shards[stage]) for _ in range(data.size)]
        torch.distributed.all_gather(pieces, shards[stage], group=data.handle)
        whole = torch.cat(pieces)
        name_of = {parameter: name for name, parameter in module.named_parameters()}
        for parameter in rolling.parameters[stage]:
            found, whole = whole[: parameter.numel()], whole[parameter.numel() :]
            target = wanted[name_of[parameter]].flatten()
            error = max(error, float((found - target).abs().max() / target.abs().max()))
            names.add(name_of[parameter])
    lengths = [length for length in rolling.lengths.values() if length]
    return Rolled(error, names, rolling.ledger.peak_live, calls, int(sent), lengths)


@pytest.mark.parametrize(("schedule", "chunks"), [("interleaved", 3), ("zb_h1", 1)])
def test_shards_hold_the_gradients_of_one_process(four: Team, schedule: str, chunks: int) -> None:
    case = Case(schedule, chunks=chunks, layers=3, dtype=torch.float64)
    results = four.run(rolled, case, 2)
    seen: set[str] = set()
    for found in results:
        assert found.error < 1e-10
        assert found.peak_live == min(2, len(found.lengths))
        # Four microbatches a data rank: two runs of two for each chunk, or one without chunks.
        runs = 2 if chunks > 1 else 1
        assert found.calls == 2 * runs * len(found.lengths)
        assert found.sent_bytes == 2 * runs * sum(found.lengths) * 8 // 2
        seen |= found.names
    assert seen == set(whole_step(case)[1]) - {EMBEDDING}


def test_a_third_stage_waits_for_a_buffer() -> None:
    stages = {index: torch.nn.Linear(3, 2) for index in range(3)}
    rolling = RollingGradients(stages, single())
    rolling.begin()
    for index in (0, 1, 2, 0):
        rolling.acquire(index)
        stages[index](torch.ones(1, 3)).sum().backward()
        rolling.release(index)
    shards = rolling.finish()
    assert rolling.ledger.peak_live == 2
    assert shards[0].tolist() == [2.0] * 8
    assert shards[2].tolist() == [1.0] * 8


def test_stages_that_are_not_released_are_told() -> None:
    stages = {index: torch.nn.Linear(3, 2) for index in range(3)}
    rolling = RollingGradients(stages, single())
    rolling.acquire(0)
    rolling.acquire(1)
    with pytest.raises(AssertionError, match="not released before"):
        rolling.acquire(2)


def test_a_replaced_gradient_is_noticed() -> None:
    stages = {0: torch.nn.Linear(3, 2)}
    rolling = RollingGradients(stages, single())
    rolling.acquire(0)
    stages[0].weight.grad = torch.zeros(2, 3)
    with pytest.raises(AssertionError, match="was replaced"):
        rolling.release(0)


def test_a_parameter_of_two_stages_is_refused() -> None:
    table = torch.nn.Linear(3, 2)
    with pytest.raises(AssertionError, match="belong to `apart`"):
        RollingGradients({0: table, 1: table}, single())
    RollingGradients(
        {0: torch.nn.Linear(1, 1), 1: table, 2: table}, single(), apart=[*table.parameters()]
    )
