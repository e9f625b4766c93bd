"""Gradients of a model in bf16 whose heads, tokens or experts are shared: as exact as one process.

All experts take every token, so that a rounding never chooses another expert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny_training
import torch
from spread_training import Run, gradients_alone, whole_of
from team import Team
from tiny_training import Mode, Setting, furthest, rows_of_step
from torch import Tensor

from fivefold.parallel.collectives import all_reduce
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.train.step import own_microbatches

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

ROUNDING = 2.0**-8
"""Largest relative error of a number in bf16."""


@contextmanager
def every_expert() -> Iterator[None]:
    shape = tiny_training.TINY
    experts = {"num_experts_per_tok": shape.n_routed_experts}
    tiny_training.TINY = shape.model_copy(update=experts)
    try:
        yield
    finally:
        tiny_training.TINY = shape


def gradients_and_parts(
    world: World, setting: Setting, config: ParallelConfig
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Return the loss of a step, all gradients, and the sums of this rank's own before they meet.

    The last are in fp64, of the parameters that this rank holds whole.
    """
    mesh = Mesh(config, world)
    with every_expert():
        spreading = Run(mesh, setting).spreading
    compute, sharding = spreading.compute, spreading.sharding
    assert sharding is not None, "there are several ranks"
    rows, total = rows_of_step(0), torch.zeros((), dtype=torch.float64)
    parts: dict[str, Tensor] = {}
    compute.refresh()
    for part in own_microbatches(rows, setting.microbatch_rows, mesh.data):
        assert part is not None, "rows divide among ranks"
        loss = setting.objective(compute.model, part, rows, 0, spreading.context).total
        loss.backward()
        for name, parameter in compute.model.named_parameters():
            # FSDP2 has summed its gradients when the backward ends.
            if (
                config.zero_stage < 3
                and parameter.grad is not None
                and parameter.shape == sharding.shapes[name]
            ):
                parts[name] = parameter.grad.double() + parts.get(name, 0.0)
        compute.collect()
        sharding.collect()
        total += loss.detach()
    sharding.finish()
    gradients = {
        name: whole_of(sharding.as_global(name, row.grad))
        for name, row in sharding.rows.items()
        if row.grad is not None
    }
    assert all(value.dtype == torch.float32 for value in gradients.values())
    return float(all_reduce(total, mesh.everyone)), gradients, parts


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, relative to that of the exact one."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        pytest.param("dense", ParallelConfig(tp=2, ep=2), marks=pytest.mark.slow),
        pytest.param("dense", ParallelConfig(cp=2), marks=pytest.mark.slow),
        pytest.param("dense", ParallelConfig(dp=2, ep=2), marks=pytest.mark.slow),
        pytest.param("warm_up", ParallelConfig(tp=2), marks=pytest.mark.slow),
        pytest.param("warm_up", ParallelConfig(cp=2, cp_form="heads"), marks=pytest.mark.slow),
        ("dense", ParallelConfig(cp=2, tp=2, ep=4)),
        pytest.param("dense", ParallelConfig(tp=4), marks=pytest.mark.slow),
        ("dense", ParallelConfig(fsdp=2, ep=2)),
        pytest.param("dense", ParallelConfig(fsdp=2, tp=2), marks=pytest.mark.slow),
        pytest.param(
            "warm_up", ParallelConfig(fsdp=2, cp=2, cp_form="heads"), marks=pytest.mark.slow
        ),
    ],
)
def test_rounded_gradients_are_as_exact_as_in_one_process(
    pair: Team, four: Team, mode: Mode, config: ParallelConfig
) -> None:
    rounded = Setting(mode=mode, dtype="float32", compute_dtype="bfloat16")
    with every_expert():
        exact_loss, exact = gradients_alone(Setting(mode=mode))
        alone_loss, alone = gradients_alone(rounded)
    assert alone_loss == pytest.approx(exact_loss, rel=ROUNDING)
    team = pair if config.size == 2 else four
    results = team.run(gradients_and_parts, rounded, config, seconds=180)
    for loss, found, _ in results:
        assert loss == pytest.approx(alone_loss, rel=ROUNDING)
        assert found.keys() == exact.keys()
        for name, value in exact.items():
            # A partial sum is rounded once more on its way.
            limit = 2 * distance(alone[name], value) + ROUNDING / 8
            assert distance(found[name], value) <= limit, name
    if config.zero_stage == 3:
        return
    # What ranks have rounded meets in fp32.
    own = [parts for _, _, parts in results]
    sums = {name: torch.stack([parts[name] for parts in own]).sum(0) for name in own[0]}
    assert sums
    gradients = {name: results[0][1][name].double() for name in sums}
    assert furthest(gradients, sums)[0] <= 1e-6
