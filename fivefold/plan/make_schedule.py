"""Schedules by name, as `fivefold schedule NAME` and the layout search ask for them."""

from fivefold.errors import ConfigError
from fivefold.plan.automatic import automatic
from fivefold.plan.one_f_one_b import interleaved, one_f_one_b
from fivefold.plan.schedule import Schedule, loop_placement, v_placement
from fivefold.plan.simulate import StageCosts, even_costs
from fivefold.plan.v_shape import v_half, v_min, zb_v
from fivefold.plan.zero_bubble import zb_h1, zb_h2

NAMES = ("1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half", "v_min", "automatic")


def make_schedule(
    name: str,
    ranks: int,
    microbatches: int,
    *,
    chunks: int = 2,
    costs: StageCosts | None = None,
    memory_cap: float | None = None,
) -> Schedule:
    """Return the schedule called `name` for `ranks` pipeline ranks.

    `chunks` counts the stages a rank of `interleaved`. `costs` (one entry a stage; equal by
    default) place the weight gradients of the V schedules and everything of `automatic`, whose
    ranks each hold at most `memory_cap`, in the costs' unit; by default as much as 1F1B does.

    Raises:
        ConfigError: an unknown name, a size below one, or a cap that admits no microbatch.
    """
    if name not in NAMES:
        raise ConfigError(
            expected="the name of a pipeline schedule",
            found=repr(name),
            fix=f"Choose one of {', '.join(NAMES)}",
        )
    for what, size in (("rank", ranks), ("microbatch", microbatches), ("chunk", chunks)):
        if size < 1:
            raise ConfigError(
                expected=f"at least one {what}", found=str(size), fix=f"Give one {what} or more"
            )
    if name == "interleaved":
        return interleaved(ranks, chunks, microbatches)
    if name == "automatic":
        costs = costs or even_costs(ranks)
        cap = ranks * max(costs.memory) if memory_cap is None else memory_cap
        return automatic(loop_placement(ranks), microbatches, costs, (cap,) * ranks)
    if name in ("zb_v", "v_half", "v_min"):
        return {"zb_v": zb_v, "v_half": v_half, "v_min": v_min}[name](ranks, microbatches, costs)
    return {"1f1b": one_f_one_b, "zb_h1": zb_h1, "zb_h2": zb_h2}[name](ranks, microbatches)


def rank_costs(
    name: str,
    ranks: int,
    *,
    chunks: int = 2,
    forward: float = 1.0,
    input_gradient: float = 1.0,
    weight_gradient: float = 1.0,
    edge: float = 0.0,
    weight_memory: float = 1.0,
) -> StageCosts:
    """Return even costs for a schedule from what one microbatch takes on a whole rank.

    Times are divided over the rank's stages, so that schedules with one and with several compare.
    Memory counts whole microbatches; `weight_memory` is the share that stays between I and W.
    """
    placement = placement_of(name, ranks, chunks)
    share = ranks / len(placement)
    return even_costs(
        len(placement),
        forward * share,
        input_gradient * share,
        weight_gradient * share,
        edge,
        memory=share,
        weight_memory=weight_memory * share,
    )


def placement_of(name: str, ranks: int, chunks: int = 2) -> tuple[int, ...]:
    """Return where the stages of a schedule live, which its costs have to know beforehand."""
    if name in ("zb_v", "v_half", "v_min"):
        return v_placement(ranks)
    return loop_placement(ranks, chunks if name == "interleaved" else 1)
