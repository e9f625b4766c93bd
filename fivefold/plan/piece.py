"""One link of the model's chain, as the planner sees it, and stages as sums of links."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """One link of the chain; seconds and bytes a microbatch, parameters on one rank.

    `dense`, `experts` and `table` (embedding or head) count parameters; `streams` are residual
    streams that every later piece gets beside the main one.
    """

    name: str
    forward: float = 0.0
    input_gradient: float = 0.0
    weight_gradient: float = 0.0
    activation_bytes: float = 0.0
    dense: float = 0.0
    experts: float = 0.0
    table: float = 0.0
    streams: int = 0

    @property
    def seconds(self) -> float:
        """Time of forward and backward."""
        return self.forward + self.input_gradient + self.weight_gradient


def merge_pieces(pieces: Sequence[Piece]) -> Piece:
    """Return one piece with the sums of all: a stage."""
    return Piece(
        name=f"{pieces[0].name} to {pieces[-1].name}",
        forward=sum(piece.forward for piece in pieces),
        input_gradient=sum(piece.input_gradient for piece in pieces),
        weight_gradient=sum(piece.weight_gradient for piece in pieces),
        activation_bytes=sum(piece.activation_bytes for piece in pieces),
        dense=sum(piece.dense for piece in pieces),
        experts=sum(piece.experts for piece in pieces),
        table=sum(piece.table for piece in pieces),
        streams=sum(piece.streams for piece in pieces),
    )
