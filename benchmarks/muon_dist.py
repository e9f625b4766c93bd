"""Muon over row shards by owners against gathering every matrix on every rank.

Four processes (`--ranks`) hold the rows of the `mini` model's matrices. Ours sends each matrix that
no rank has whole to its owner and its direction back; the peer gathers all of them and computes
them all everywhere, as an optimizer does that knows nothing of ownership. Beside the times stand
what neither a busy machine nor its two cores can blur: bytes sent over those of the gather (at most
0.55 from four ranks on), and the busiest owner's Newton-Schulz FLOPs over the mean (at most 1.3).
"""

import argparse
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from harness import add_options, compare
from torch import Tensor, nn

from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.newton_schulz import COEFFICIENTS, orthogonalise
from fivefold.parallel.collectives import all_gather
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.muon import Matrix, MuonRule, OwnedMuon, imbalance
from fivefold.parallel.row_shard import Bucket, RowShard, make_buckets
from fivefold.train.muon import matrix_splits, update_scale
from fivefold.train.optimizer import to_matrices
from fivefold.train.optimizer_config import OptimizerConfig

BUCKET_BYTES = 2**22


def main() -> None:
    """Start the ranks; the first measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    options.threads = 1
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        members = [
            context.Process(target=take_part, args=(rank, store, options))
            for rank in range(options.ranks)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
    if any(member.exitcode for member in members):
        raise SystemExit(1)


def take_part(rank: int, path: str, options: argparse.Namespace) -> None:
    """Live as one rank: the first says which side runs, all run it."""
    torch.set_num_threads(1)
    store = dist.FileStore(path, options.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    world = World(rank, options.ranks, store, torch.device("cpu"))
    mesh = Mesh(ParallelConfig(dp=options.ranks), world)
    sides = make_sides(mesh)
    if not mesh.is_first:
        while (side := mesh.share(None)) != "end":
            sides[side]()
        return

    def led(side: str) -> Callable[[], None]:
        def call() -> None:
            mesh.share(side)
            sides[side]()

        return call

    ours, peer = (measure_bytes(mesh, led(side)) for side in ("ours", "peer"))
    owned = sides["owned"]
    compare(
        "muon_dist",
        led("ours"),
        led("peer"),
        work=1,
        unit="updates/s",
        options=options,
        detail={
            "ranks": options.ranks,
            "bytes_over_gather": round(ours / peer, 3),
            "sent_bytes": ours,
            "flop_imbalance": round(imbalance(owned.tasks, options.ranks), 3),
        },
    )
    mesh.share("end")


def measure_bytes(mesh: Mesh, call: Callable[[], None]) -> float:
    """Return what the first rank sends in a call."""
    before = mesh.ledger.sent_bytes()
    call()
    return mesh.ledger.sent_bytes() - before


def make_sides(mesh: Mesh) -> dict[str, Any]:
    """Return one update by either side, on the same rows."""
    config = OptimizerConfig()
    with torch.device("meta"):
        model = Transformer(preset("mini"))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    splits = matrix_splits(model.config, shapes, config)
    shapes = {name: shape for name, shape in shapes.items() if splits[name]}
    group = mesh.data
    shards = {name: RowShard(shape, group.size, group.rank) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(mesh.rank)
    rows = {}
    for name, shard in shards.items():
        rows[name] = nn.Parameter(torch.randn(shard.local_shape, generator=generator))
        rows[name].grad = torch.randn(shard.local_shape, generator=generator)
    matrices = [
        matrix for name in shapes for matrix in to_matrices(name, shapes[name], splits[name])
    ]
    rule = MuonRule(
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        orthogonalise=lambda blocks: orthogonalise(blocks, COEFFICIENTS[config.ns], torch.float32),
        scale=lambda rows, columns: update_scale(rows, columns, config),
    )
    owned = OwnedMuon(rows, shapes, matrices, group, rule, bucket_bytes=BUCKET_BYTES)
    gathered = GatheredMuon(rows, shapes, matrices, mesh, rule)
    return {"ours": lambda: owned.step(1e-3), "peer": lambda: gathered.step(1e-3), "owned": owned}


class GatheredMuon:
    """The peer: every rank gathers every matrix and computes all directions."""

    def __init__(
        self,
        rows: dict[str, nn.Parameter],
        shapes: dict[str, tuple[int, ...]],
        matrices: list[Matrix],
        mesh: Mesh,
        rule: MuonRule,
    ) -> None:
        self.rows, self.shapes, self.matrices, self.rule = rows, shapes, matrices, rule
        self.group = mesh.data
        self.momenta = {name: torch.zeros_like(value) for name, value in rows.items()}
        whole = {name: torch.empty(shape) for name, shape in shapes.items()}
        size, rank = self.group.size, self.group.rank
        self.buckets = make_buckets(whole, shapes, size, rank, BUCKET_BYTES)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the rows."""
        gradients = [value.grad for value in self.rows.values() if value.grad is not None]
        momenta = list(self.momenta.values())
        torch._foreach_lerp_(momenta, gradients, 1 - self.rule.momentum)
        mixed = torch._foreach_lerp(gradients, momenta, self.rule.momentum)
        local = dict(zip(self.rows, mixed, strict=True))
        torch._foreach_mul_(list(self.rows.values()), 1 - lr * self.rule.weight_decay)
        for bucket in self.buckets:
            whole = self.gather(bucket, local)
            for name in bucket.shards:
                self.update(name, whole[name], lr)

    def gather(self, bucket: Bucket, local: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors of a bucket."""
        whole, run = bucket.empty_whole(), bucket.empty_run()
        for name in bucket.shards:
            bucket.local(run, name).copy_(local[name])
        work = all_gather(whole, run, self.group)
        if work is not None:
            work.wait()
        found = {}
        for name, shard in bucket.shards.items():
            found[name] = torch.empty(shard.shape)
            bucket.unpack(whole, name, found[name])
            found[name][shard.rows] = local[name]
        return found

    def update(self, name: str, whole: Tensor, lr: float) -> None:
        """Orthogonalise all matrices of a parameter and move this rank's rows."""
        flat = whole.view(-1, whole.shape[-1])
        by_shape: dict[tuple[int, int], list[Matrix]] = defaultdict(list)
        for matrix in self.matrices:
            if matrix.name == name:
                by_shape[matrix.rows, matrix.columns].append(matrix)
        directions = torch.empty_like(flat)
        for (rows, columns), some in by_shape.items():
            blocks = [torch.cat([flat[b:e] for b, e in matrix.ranges]) for matrix in some]
            found = self.rule.orthogonalise(torch.stack(blocks)) * self.rule.scale(rows, columns)
            for matrix, direction in zip(some, found, strict=True):
                begin = 0
                for low, high in matrix.ranges:
                    directions[low:high] = direction[begin : begin + high - low]
                    begin += high - low
        shard = RowShard(self.shapes[name], self.group.size, self.group.rank)
        self.rows[name].sub_(directions.view(whole.shape)[shard.rows], alpha=lr)


if __name__ == "__main__":
    main()
