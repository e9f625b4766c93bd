"""Pipeline schedules by the clock: stages that sleep, on the real runtime with real messages.

Ours: ZB-V. Peer: 1F1B of the same ranks, microbatches and costs. Every other schedule runs too, and
stands beside what `plan.simulate` says of it, so that the order and the distance from the plan can
be read off. Sleeping takes no core: the ranks may outnumber the cores. Real compute on shared cores
would say nothing about schedules.

    python benchmarks/schedules.py            4 ranks, 8 microbatches of 64 + 64 + 48 ms a rank
    python benchmarks/schedules.py --ranks 8 --microbatches 16
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from harness import add_options, compare, pair_count

from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.pipeline.emulated import EmulatedRun
from fivefold.plan.make_schedule import make_schedule, rank_costs
from fivefold.plan.schedule import Schedule
from fivefold.plan.simulate import StageCosts, simulate

NAMES = ("1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v", "v_half")


class Pipeline:
    """Processes that run one step of a schedule when they are told its name."""

    def __init__(self, options: argparse.Namespace, store: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._ends = []
        self._processes = []
        for rank in range(options.ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=_rank, args=(rank, options, store, theirs))
            process.start()
            self._ends.append(mine)
            self._processes.append(process)

    def step(self, name: str) -> float:
        """Return the seconds of the slowest rank."""
        for end in self._ends:
            end.send(name)
        return max(end.recv() for end in self._ends)

    def stop(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join()


def _rank(rank: int, options: argparse.Namespace, path: Path, end: Connection) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(path), options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    world = World(rank, options.ranks, store, torch.device("cpu"))
    group = Mesh(ParallelConfig(pp=options.ranks), world).group("pp")
    runs: dict[str, EmulatedRun] = {}
    while (name := end.recv()) is not None:
        if name not in runs:
            runs[name] = EmulatedRun(*_planned(name, options), group)
        end.send(runs[name].step())
    dist.destroy_process_group()


def _planned(name: str, options: argparse.Namespace) -> tuple[Schedule, StageCosts]:
    forward, input_gradient, weight_gradient = (ms / 1e3 for ms in options.milliseconds)
    costs = rank_costs(
        name,
        options.ranks,
        forward=forward,
        input_gradient=input_gradient,
        weight_gradient=weight_gradient,
    )
    return make_schedule(name, options.ranks, options.microbatches, costs=costs), costs


def main() -> None:
    """Run every schedule, print the table, then ours against the peer in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument(
        "--milliseconds",
        type=float,
        nargs=3,
        default=(64.0, 64.0, 48.0),
        metavar=("F", "I", "W"),
        help="of a microbatch on a whole rank",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(options, Path(folder) / "store")
        table = {}
        for name in NAMES:
            pipeline.step(name)
            steps = [pipeline.step(name) for _ in range(pair_count(options))]
            simulated = simulate(*_planned(name, options)).makespan
            measured = statistics.median(steps)
            table[name] = {
                "simulated_seconds": round(simulated, 3),
                "measured_seconds": round(measured, 3),
                "measured_over_simulated": round(measured / simulated, 3),
                "measured_min_max": [round(min(steps), 3), round(max(steps), 3)],
            }
            print(f"{name:<12} {json.dumps(table[name])}", flush=True)
        simulated = {name: row["simulated_seconds"] for name, row in table.items()}
        measured = {name: row["measured_seconds"] for name, row in table.items()}
        compare(
            "schedules",
            lambda: pipeline.step("zb_v"),
            lambda: pipeline.step("1f1b"),
            work=options.microbatches,
            unit="microbatches/s",
            options=options,
            detail={
                "ranks": options.ranks,
                "planned_ratio": round(simulated["1f1b"] / simulated["zb_v"], 3),
                "order_planned": sorted(NAMES, key=lambda name: simulated[name]),
                "order_measured": sorted(NAMES, key=lambda name: measured[name]),
                "schedules": table,
            },
        )
        pipeline.stop()


if __name__ == "__main__":
    main()
