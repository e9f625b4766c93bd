"""One step's work: which tokens of which requests, flattened, and where their keys stand.

T tokens in all, request after request. A request with few tokens is decoded: each of its tokens is
a query row of its own. One with many is a chunk of a prompt: its tokens share their keys. The index
tensors are made once a step, on the planning thread, and serve every layer, because all layers
share one block table. Shapes: T tokens, P decoded queries, S keys.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fivefold.serve.request import Request
from fivefold.serve.sampler import Draw


@dataclass(eq=False)
class Part:
    """The tokens `begin` to `end` of one request within a step."""

    request: Request
    begin: int
    """Position of the first token in the request."""
    end: int
    at: int
    """Place of the first token among the T of the step."""
    row: int
    """Row of the block table."""
    drafts: int = 0
    """The last so many tokens are drafts, to be verified."""
    draws: bool = False
    """Does a new token follow the last one?"""
    scored: range = range(0)
    """Prompt positions whose next token is scored in this step."""

    @property
    def size(self) -> int:
        """Tokens of this part."""
        return self.end - self.begin

    @property
    def drawn_places(self) -> range:
        """Places of the T after which a token is drawn: one, and one more a draft."""
        last = self.at + self.size
        return range(last - 1 - self.drafts, last) if self.draws else range(0)

    def draws_at(self) -> list[Draw]:
        """Return how the tokens after `drawn_places` are drawn."""
        request = self.request
        first = self.end - self.drafts
        return [
            Draw(request.params, request.seed, position)
            for position in range(first, first + len(self.drawn_places))
        ]


@dataclass(eq=False)
class Batch:
    """What one step computes."""

    parts: list[Part]
    ids: list[int]
    """Token of each place; -1 - i stands for the token that row i of the step before drew."""
    version: int
    """Weights that it runs with."""
    keys: "KeyMap"


class Decoded(NamedTuple):
    """Queries that each have keys of their own."""

    place_P: Tensor | None
    """Places among the T tokens; None: all of them, in order."""
    slot_PS: Tensor
    """Slots of each query's keys; those after it name slot 0 or what comes later."""
    bias_P1S: Tensor | None
    """0 for keys of the query, -inf for others; None where all rows are equally long."""
    least_keys: int
    """Keys of the query that has the fewest."""
    begin: int | None
    """First slot of the only query, if its keys stand in a row: they need no gathering."""


class Chunk(NamedTuple):
    """Tokens of one prompt, each seeing the keys up to itself."""

    places: slice
    slot_S: Tensor
    """Slots of all keys, the chunk's own last."""


class KeyMap(NamedTuple):
    """Where the keys of one step stand."""

    position_T: Tensor
    slot_T: Tensor
    """Where the keys of the new tokens go."""
    decoded: Decoded | None
    chunks: list[Chunk]


def map_keys(
    parts: list[Part],
    table: NDArray[np.int64],
    block_tokens: int,
    most_decoded: int,
    device: torch.device | None = None,
) -> KeyMap:
    """Make the index tensors of a step from its parts and the table of blocks, row by row.

    A part of more than `most_decoded` tokens is a chunk.
    """
    sizes = np.array([part.size for part in parts])
    row = np.array([part.row for part in parts]).repeat(sizes)
    # Each place is so far from the beginning of its part.
    shift = np.array([part.begin - part.at for part in parts]).repeat(sizes)
    position = np.arange(len(row)) + shift
    slot = table[row, position // block_tokens] * block_tokens + position % block_tokens
    is_decoded = (sizes <= most_decoded).repeat(sizes)
    chunks = []
    for part in parts:
        if part.size > most_decoded:
            slots = _slots(table, np.array([part.row]), part.end, block_tokens)[0]
            chunks.append(Chunk(slice(part.at, part.at + part.size), _tensor(slots, device)))
    decoded = None
    if is_decoded.any():
        place = None if is_decoded.all() else _tensor(is_decoded.nonzero()[0], device)
        decoded = _decode(row[is_decoded], position[is_decoded], table, block_tokens, place, device)
    return KeyMap(_tensor(position, device), _tensor(slot, device), decoded, chunks)


def _tensor(array: NDArray, device: torch.device | None) -> Tensor:
    return torch.from_numpy(array).to(device)


def _slots(
    table: NDArray[np.int64], row: NDArray[np.int64], keys: int, block_tokens: int
) -> NDArray[np.int64]:
    """Return the slots of the first `keys` positions of each row."""
    blocks = table[row, : -(-keys // block_tokens)]
    slots = blocks[:, :, None] * block_tokens + np.arange(block_tokens)
    return np.ascontiguousarray(slots.reshape(len(row), -1)[:, :keys])


def _decode(
    row: NDArray[np.int64],
    position: NDArray[np.int64],
    table: NDArray[np.int64],
    block_tokens: int,
    place_P: Tensor | None,
    device: torch.device | None,
) -> Decoded:
    most, least = int(position.max()) + 1, int(position.min()) + 1
    slot = _slots(table, row, most, block_tokens)
    bias, begin = None, None
    if least < most:
        hidden = np.arange(most) > position[:, None]
        bias = _tensor(np.where(hidden, np.float32(-np.inf), np.float32(0)), device)[:, None]
    if len(row) == 1 and bool((slot[0] == slot[0, 0] + np.arange(most)).all()):
        begin = int(slot[0, 0])
    return Decoded(place_P, _tensor(slot, device), bias, least, begin)
