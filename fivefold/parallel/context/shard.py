"""The tokens of one microbatch that this rank holds, and the way to those of the others.

The rank's tokens are laid out as ONE row of N tokens, run by run, whatever rows they come from.
What all ranks have stands in the microbatch's own order, (B, T, ...). Ranks may hold different
numbers of tokens: on the way each is padded to the most that a rank holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fivefold.parallel.collectives import all_reduce, reduce_scatter
from fivefold.parallel.context.assignment import Assignment, Run
from fivefold.parallel.context.exchange import Swap, gather, swap
from fivefold.parallel.mesh import Group


@dataclass(frozen=True)
class TokenShard:
    """One rank's part of the tokens of a microbatch."""

    rows: int
    """Rows of the microbatch."""
    tokens: int
    """Tokens of a row."""
    runs: list[Run]
    """The rank's runs, by row and place: its tokens in their order."""
    group: Group
    """The ranks that share the tokens."""
    exchange: Swap
    """All-to-all over them."""
    place_N: Tensor
    """Place of each of the rank's tokens among all, row x T + place in the row, int64."""
    sent_X: Tensor
    """Where each token of the microbatch stands among what padded ranks send, int64 (B x T)."""
    padded_tokens: int
    """Most tokens of a rank."""

    def take(self, x_BT: Tensor) -> Tensor:
        """Return the rank's tokens of (B, T, ...) as one row, (1, N, ...)."""
        return x_BT.flatten(0, 1)[self.place_N][None]

    def gather(self, x_1NX: Tensor) -> Tensor:
        """Return what all ranks have of (1, N, X) as (B, T, X)."""
        sent_PX = gather(self._padded(x_1NX[0]), self.group)
        return sent_PX[self.sent_X].unflatten(0, (self.rows, self.tokens))

    def heads_for_tokens(self, x_1NHX: Tensor) -> Tensor:
        """Give heads of (1, N, H, X) away for all tokens of own heads, (B, T, H / ranks, X)."""
        x_RNHX = x_1NHX[0].unflatten(1, (self.group.size, -1)).transpose(0, 1)
        padding = self.padded_tokens - x_RNHX.shape[1]
        sent = F.pad(x_RNHX, (0, 0, 0, 0, 0, padding))
        came = swap(sent, self.exchange).flatten(0, 1)
        return came[self.sent_X].unflatten(0, (self.rows, self.tokens))

    def tokens_for_heads(self, x_BTHX: Tensor) -> Tensor:
        """Undo `heads_for_tokens`: (B, T, H / ranks, X) to (1, N, H, X)."""
        came = swap(self._as_sent(x_BTHX), self.exchange)
        return came[:, : len(self.place_N)].transpose(0, 1).flatten(1, 2)[None]

    def sum_to_owners(self, x_BTX: Tensor) -> Tensor:
        """Sum (B, T, X) over the ranks, each token for its owner: (1, N, X), without gradient."""
        sent = self._as_sent(x_BTX.detach())
        own = torch.empty_like(sent[0])
        work = reduce_scatter(own.view(-1), sent, self.group)
        if work is not None:
            work.wait()
        return own[: len(self.place_N)][None]

    def row_sums(self, x_NX: Tensor) -> Tensor:
        """Sum (N, X) over the rank's tokens of each row, (B, X); carries gradients."""
        row_N = self.place_N // self.tokens
        return x_NX.new_zeros(self.rows, x_NX.shape[1]).index_add(0, row_N, x_NX)

    def add_up_(self, x: Tensor) -> Tensor:
        """Sum over the ranks in place, without gradient."""
        return all_reduce(x, self.group)

    def _padded(self, x_NX: Tensor) -> Tensor:
        return F.pad(x_NX, (0, 0, 0, self.padded_tokens - len(x_NX)))

    def _as_sent(self, x_BT: Tensor) -> Tensor:
        """Lay (B, T, ...) out by owner, (ranks, padded tokens, ...)."""
        sent = x_BT.new_zeros(self.group.size * self.padded_tokens, *x_BT.shape[2:])
        sent = sent.index_copy(0, self.sent_X, x_BT.flatten(0, 1))
        return sent.unflatten(0, (self.group.size, self.padded_tokens))


def make_shard(
    assignment: Assignment,
    rows: int,
    tokens: int,
    group: Group,
    exchange: Swap,
    device: torch.device,
) -> TokenShard:
    """Prepare the shard of `group.rank` in an assignment that all ranks share."""
    places = [_places(runs, tokens) for runs in assignment]
    most = max(len(place_N) for place_N in places)
    sent_X = torch.full((rows * tokens,), -1)
    for rank, place_N in enumerate(places):
        sent_X[place_N] = torch.arange(len(place_N)) + rank * most
    assert bool((sent_X >= 0).all()), "every token has a rank"
    own, place_N = assignment[group.rank], places[group.rank].to(device)
    return TokenShard(rows, tokens, own, group, exchange, place_N, sent_X.to(device), most)


def _places(runs: Sequence[Run], tokens: int) -> Tensor:
    return torch.cat([torch.arange(r.begin, r.end) + r.row * tokens for r in runs])
