"""Two rolling gradient buffers on pp2 x dp2: the gradients of one process, never a third buffer."""

from typing import NamedTuple

import pytest
import torch
from piped import EMBEDDING, ONE_BY_ONE, Case, cut_model, whole_step
from team import Team, World
from torch import Tensor, nn

from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, single
from fivefold.parallel.pipeline.rolling import RollingGradients, RollingLedger
from fivefold.parallel.pipeline.stage import ModelStage
from fivefold.parallel.pipeline.weight_store import add_gradient

pytestmark = pytest.mark.dist


class Rolled(NamedTuple):
    error: float
    names: set[str]
    ledger: RollingLedger
    full_bytes: int
    calls: int
    sent_bytes: int
    run_bytes: dict[int, int]
    """Of each stage."""
    buckets: dict[int, int]
    """Of each stage."""
    largest_bytes: int
    """Of a bucket."""


def rolled(world: World, case: Case, steps: int) -> Rolled:
    """Compare the rows after some steps with one process, and return what the ledgers counted."""
    _, wanted = whole_step(case)
    mesh = Mesh(ParallelConfig(pp=2, dp=2), world)
    pipeline, data = mesh.group("pp"), mesh.group("dp")
    half = len(ONE_BY_ONE) // 2
    parts = ONE_BY_ONE[data.rank * half : (data.rank + 1) * half]
    embeddings: set[nn.Parameter] = set()

    def make_keeper(stages: dict[int, ModelStage]) -> RollingGradients:
        named = {stage: dict(module.named_parameters()) for stage, module in stages.items()}
        embeddings.update(one.pop(EMBEDDING) for one in named.values() if EMBEDDING in one)
        return RollingGradients(named, data, bucket_bytes=2**14)

    piped = cut_model(case, pipeline, half, make_keeper)
    rolling = piped.keeper
    assert isinstance(rolling, RollingGradients)
    mesh.ledger.reset()
    rows: dict[str, Tensor] = {}
    for _ in range(steps):
        rolling.begin()
        for weight in embeddings:
            weight.grad = None
        piped.runtime.step(piped.batches(parts))
        rows = rolling.finish()
    sent, calls = mesh.ledger.sent_bytes("reduce_scatter"), mesh.ledger.calls("reduce_scatter")
    error, names = 0.0, set()
    for bucket in (bucket for buckets in rolling.buckets.values() for bucket in buckets):
        for name, shard in bucket.shards.items():
            target = wanted[name][shard.rows]
            difference = (rows[name] - target).abs().max() if target.numel() else torch.zeros(())
            error = max(error, float(difference / wanted[name].abs().max()))
            names.add(name)
    return Rolled(
        error,
        names,
        rolling.ledger,
        rolling.full_bytes,
        calls,
        int(sent),
        {stage: rolling.run_bytes(stage) for stage in piped.stages},
        {stage: len(rolling.buckets[stage]) for stage in piped.stages},
        max(bucket.whole_bytes for buckets in rolling.buckets.values() for bucket in buckets),
    )


@pytest.mark.parametrize(("schedule", "chunks"), [("interleaved", 3), ("zb_h1", 1)])
def test_rows_hold_the_gradients_of_one_process(four: Team, schedule: str, chunks: int) -> None:
    case = Case(schedule, chunks=chunks, layers=3, dtype=torch.float64)
    results = four.run(rolled, case, 2)
    seen: set[str] = set()
    for found in results:
        assert found.error < 1e-10
        # Four microbatches a data rank: two runs of two for each chunk, or one without chunks.
        runs = 2 if chunks > 1 else 1
        assert found.ledger.runs == 2 * runs * sum(map(bool, found.buckets.values()))
        assert found.calls == 2 * runs * sum(found.buckets.values())
        # Half of every run goes to the other data rank.
        assert found.sent_bytes == 2 * runs * sum(found.run_bytes.values()) // 2
        assert found.ledger.filling_bytes == found.ledger.travelling_bytes == 0
        assert found.full_bytes == max(found.run_bytes.values())
        if chunks > 1:
            assert found.full_bytes < found.ledger.peak_bytes <= 2 * found.full_bytes
        else:
            # Nothing fills meanwhile: the one gradient, and two of its buckets.
            assert found.ledger.peak_bytes <= found.full_bytes + 2 * found.largest_bytes
        seen |= found.names
    assert seen == set(whole_step(case)[1]) - {EMBEDDING}


def named(modules: dict[int, nn.Module]) -> dict[int, dict[str, nn.Parameter]]:
    return {
        stage: {f"{stage}.{name}": p for name, p in module.named_parameters()}
        for stage, module in modules.items()
    }


def test_stages_take_turns_with_two_buffers() -> None:
    stages: dict[int, nn.Module] = {index: nn.Linear(3, 2) for index in range(3)}
    rolling = RollingGradients(named(stages), single())
    rolling.begin()
    for index in (0, 1, 2, 0):
        rolling.acquire(index)
        stages[index](torch.ones(1, 3)).sum().backward()
        rolling.release(index)
    rows = rolling.finish()
    assert rolling.ledger.peak_bytes == 2 * rolling.full_bytes == 2 * 8 * 4
    assert rows["0.weight"].tolist() == [[2.0] * 3] * 2
    assert rows["2.bias"].tolist() == [1.0] * 2
    rolling.begin()
    assert rolling.finish()["0.weight"].tolist() == [[0.0] * 3] * 2


def test_only_what_a_backward_added_to_is_touched() -> None:
    stages: dict[int, nn.Module] = {index: nn.Linear(3, 2) for index in range(2)}
    rolling = RollingGradients(named(stages), single())
    rolling.begin()
    rolling.acquire(0)
    (stages[0].get_parameter("bias") * 0).sum().backward()
    rolling.release(0)
    rolling.acquire(1)
    add_gradient(stages[1].get_parameter("weight"), torch.ones(2, 3))
    rolling.release(1)
    assert rolling.touched == {"0.bias", "1.weight"}
    rolling.finish()
    rolling.begin()
    assert rolling.touched == frozenset()


def test_a_stage_that_is_not_released_is_told() -> None:
    rolling = RollingGradients(named({index: nn.Linear(3, 2) for index in range(2)}), single())
    rolling.acquire(0)
    with pytest.raises(AssertionError, match="not released before 1"):
        rolling.acquire(1)


def test_a_replaced_gradient_is_noticed() -> None:
    layer = nn.Linear(3, 2)
    rolling = RollingGradients(named({0: layer}), single())
    rolling.acquire(0)
    layer.weight.grad = torch.zeros(2, 3)
    with pytest.raises(AssertionError, match="weight was replaced"):
        rolling.release(0)


def test_a_parameter_of_two_stages_is_refused() -> None:
    table = nn.Linear(3, 2)
    with pytest.raises(AssertionError, match="are kept apart"):
        RollingGradients(named({0: table, 1: table}), single())
