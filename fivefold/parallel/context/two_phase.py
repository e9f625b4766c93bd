"""An all-to-all in two phases: within each node, then between nodes.

Phase 1 regroups within a node by the destination's place in its node, phase 2 sends between ranks
of equal place. The same bytes cross nodes as in one phase, in (M - 1) messages a rank instead of
(M - 1) x L for M nodes of L ranks, L times as long; phase 1 pays for it on the fast links. Source:
GLM-5 report, section 2.4, hierarchical all-to-all.
"""

from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.parallel.config import rank_table
from fivefold.parallel.context.exchange import swap_flat
from fivefold.parallel.mesh import Mesh


class TwoPhase:
    """The exchange of a `Swap` over one axis of the mesh; made by all ranks in the same order."""

    def __init__(self, mesh: Mesh, axis: str, ranks_per_node: int) -> None:
        """Split the axis in runs of `ranks_per_node` ranks, which share a node.

        Raises:
            ConfigError: the axis does not divide so.
        """
        size = mesh.group(axis).size
        if size % ranks_per_node:
            raise ConfigError(
                expected=f"ranks per node that divide the {size} of `{axis}`",
                found=str(ranks_per_node),
                fix="Use a divisor, or the exchange in one phase",
            )
        nodes = size // ranks_per_node
        table = rank_table(mesh.config, axis)
        # In an axis' ranks, node by node: place in the axis = node x ranks per node + local.
        within = [
            ranks[n * ranks_per_node :][:ranks_per_node] for ranks in table for n in range(nodes)
        ]
        between = [
            ranks[local::ranks_per_node] for ranks in table for local in range(ranks_per_node)
        ]
        self.within = mesh.make_group(f"{axis} within nodes", within)
        self.between = mesh.make_group(f"{axis} between nodes", between)

    def __call__(self, x: Tensor) -> Tensor:
        """Exchange (ranks, ...), part by part."""
        nodes, local = self.between.size, self.within.size
        by_node = x.view(nodes, local, *x.shape[1:])
        # To a rank of this node what goes to its place in any node.
        first = swap_flat(self.within)(by_node.transpose(0, 1))
        # Now (source in this node, destination's node).
        second = swap_flat(self.between)(first.transpose(0, 1))
        return second.flatten(0, 1)
