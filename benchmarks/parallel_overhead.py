"""Whole training steps of the `mini` shape on two processes against one, one thread each.

`--axis dp`: two data ranks; `--axis pp`: two pipeline stages. The peer is the same steps in one of
the two processes while the other waits. Two processes on two quiet cores could reach 2; the rest is
what they send, wait and do twice. Reported, not gated: two shared cores say nothing about schedules
or about GPUs. The bytes that the first rank sends in a step stand beside the times.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from harness import add_options, compare

from fivefold.data.loader import Rows
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.mesh import Mesh, World
from fivefold.stage import OneProcess, Ranks
from fivefold.train.balance import BalanceTracker
from fivefold.train.config import GradientConfig
from fivefold.train.data_parallel import spread
from fivefold.train.losses import language_objective
from fivefold.train.optimizer import HybridOptimizer
from fivefold.train.pretrain import freeze_indexers
from fivefold.train.staged_loss import StagedLanguageLoss
from fivefold.train.step import train_step

RANKS = 2


def main() -> None:
    """Start the ranks; the first measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--axis", choices=["dp", "pp"], default="dp")
    parser.add_argument("--schedule", default="1f1b", help="of `--axis pp`")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--microbatch-rows", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--preset", default="mini")
    options = parser.parse_args()
    options.threads = 1
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        members = [
            context.Process(target=take_part, args=(rank, store, options)) for rank in range(RANKS)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
    if any(member.exitcode for member in members):
        raise SystemExit(1)


def take_part(rank: int, path: str, options: argparse.Namespace) -> None:
    """Live as one rank: the first says what runs, the other takes part or waits."""
    torch.set_num_threads(1)
    store = dist.FileStore(path, RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    axes = ParallelConfig.model_validate({options.axis: RANKS, "schedule": options.schedule})
    mesh = Mesh(axes, World(rank, RANKS, store, torch.device("cpu")))
    together = make_step(mesh, options)
    if not mesh.is_first:
        while mesh.share(None) != "end":
            together()
        return

    def ours() -> None:
        mesh.share("together")
        together()

    ours()
    before = mesh.ledger.sent_bytes()
    ours()
    sent_bytes = mesh.ledger.sent_bytes() - before
    schedule = f"_{options.schedule}" if options.axis == "pp" else ""
    compare(
        f"parallel_overhead_{options.axis}{RANKS}{schedule}",
        ours,
        make_step(OneProcess(), options),
        work=options.rows * options.context,
        unit="tokens/s",
        options=options,
        detail={"shape": options.preset, "sent_bytes": sent_bytes},
    )
    mesh.share("end")


def make_step(ranks: Ranks, options: argparse.Namespace) -> Callable[[], None]:
    """Return one optimizer step of the ranks, always on the same rows."""
    shape = preset(options.preset)
    model = Transformer(shape)
    initialise(model, shape, torch.Generator().manual_seed(1))
    freeze_indexers(model.train())
    config = GradientConfig(
        total_tokens=10**9,
        batch_rows=options.rows,
        batch_rows_start=options.rows,
        microbatch_rows=options.microbatch_rows,
    )
    optimizer = HybridOptimizer(model.named_parameters(), shape, config.optimizer)
    spreading = spread(model, optimizer, config, ranks, StagedLanguageLoss(shape, config))
    balance, objective = BalanceTracker(spreading.holder), language_objective(config)
    rows = make_rows(shape.vocab_size, options.rows, options.context)

    def step() -> None:
        train_step(
            spreading.compute,
            spreading.optimizer,
            balance,
            objective,
            rows,
            0,
            config,
            microbatch_rows=options.microbatch_rows,
            sharding=spreading.sharding,
        )

    return step


def make_rows(vocabulary: int, rows: int, context: int) -> Rows:
    """Return rows of one document each, of random tokens."""
    shape = rows, context + 1
    ids = np.random.default_rng(1).integers(0, vocabulary, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(context + 1, dtype=np.int32), shape)
    return Rows(ids, np.zeros(shape, dtype=np.int32), positions, np.zeros(rows, dtype=np.int16))


if __name__ == "__main__":
    main()
