"""A `parallel.zero.Sharding` whose gradients pass through two rolling buffers.

What the stages hold alone goes through `rolling`, whose reductions give each data rank its rows; a
parameter that several stages read (the embedding beside the MTP layer) keeps a whole gradient and
is reduced once, after the holders have added theirs. From the rows on everything is stage 1 of
ZeRO: the optimizer's state, the update, the gathering of weights.

Surprise: all data ranks must give away the same runs in the same order, so that each has to run the
same table; one with fewer microbatches fills up with blank ones (`train.piped`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from fivefold.parallel.collectives import all_reduce, reduce_scatter
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.pipeline.rolling import RollingGradients
from fivefold.parallel.row_shard import make_buckets, same_everywhere
from fivefold.parallel.zero import Zero


class RollingZero:
    """Stage 2 of ZeRO for one rank's pipeline stages; a `program.GradientKeeper` too."""

    takes_uneven_rows = True

    def __init__(
        self,
        stages: Mapping[int, Mapping[str, nn.Parameter]],
        apart: Mapping[str, nn.Parameter],
        mesh: Mesh,
    ) -> None:
        """Share the trained parameters of `stages` and those `apart` among the data ranks."""
        weights = {name: p for named in stages.values() for name, p in named.items()} | dict(apart)
        self._mesh = mesh
        self._rows = Zero(weights, None, mesh)
        self.rows, self.shapes = self._rows.rows, self._rows.shapes
        self.data_group, self.shard_group = self._rows.data_group, self._rows.shard_group
        self.everyone = self.shard_group
        size, rank = self.shard_group.size, self.shard_group.rank
        most = mesh.config.bucket_bytes
        self.gradients = RollingGradients(stages, self.shard_group, bucket_bytes=most)
        self._apart = {name: p for name, p in apart.items() if p.requires_grad}
        self._apart_buckets = make_buckets(self._apart, self._apart, size, rank, most)

    @property
    def saves_memory(self) -> bool:
        """Are two full buffers and the sums of all stages less than a gradient for every stage?"""
        gradients = self.gradients
        whole = sum(gradients.run_bytes(stage) for stage in gradients.buckets)
        return 2 * gradients.full_bytes + gradients.sum_bytes < whole

    def begin(self) -> None:
        """Start a step."""
        self.gradients.begin()

    def acquire(self, stage: int) -> None:
        """Give the stage the buffer that fills."""
        self.gradients.acquire(stage)

    def release(self, stage: int) -> None:
        """Begin to reduce the stage's gradient."""
        self.gradients.release(stage)

    def collect(self) -> None:
        """Do nothing: the pipeline gives away what its backward passes leave."""

    def finish(self) -> None:
        """Put the gradients of the step, summed over the data ranks, on `rows`.

        A parameter without a gradient anywhere keeps none, as in one process.
        """
        found = self.gradients.finish()
        touched = self.gradients.touched | {
            name for name, parameter in self._apart.items() if parameter.grad is not None
        }
        for bucket in self._apart_buckets:
            whole, run = bucket.empty_whole(), bucket.empty_run()
            for name in bucket.shards:
                bucket.pack(whole, name, self._apart[name].grad)
                self._apart[name].grad = None
                found[name] = bucket.local(run, name)
            work = reduce_scatter(run, whole, self.shard_group)
            if work is not None:
                work.wait()
        flags = same_everywhere([name in touched for name in found], self._mesh.world.device)
        anywhere = all_reduce(flags, self.shard_group, "max").tolist()
        for (name, gradient), flag in zip(found.items(), anywhere, strict=True):
            self.rows[name].grad = gradient if flag else None  # pyright: ignore[reportAttributeAccessIssue]

    def restore(self) -> None:
        """Gather the updated rows of all ranks into the weights."""
        self._rows.restore()

    def as_global(self, name: str, local: Tensor) -> Tensor:
        """Present a tensor of this rank's rows as the whole parameter's, for a checkpoint."""
        return self._rows.as_global(name, local)
