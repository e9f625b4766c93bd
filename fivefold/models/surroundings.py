"""What all layers of one forward share: rotations, who sees whom, the cache, what the indexer does.

A packed row's documents do not see each other, but for a prefix that several of them continue and
that stands once. Up to `WHOLE_MASK_TOKENS` that is a mask; beyond, a
mask of queries x keys is what sparse attention exists to avoid, and documents are attended one by
one (dense) or told to the selection (sparse).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fivefold.models.cache import LatentCache
from fivefold.ops.attention_cost import gather_is_faster

if TYPE_CHECKING:
    from fivefold.models.indexer import IndexQuery

WHOLE_MASK_TOKENS = 2048
"""Longest row for which a mask of queries x keys may exist."""

NO_PREFIX = -2
"""Prefix of a token that sees its own document alone; -1 is the document of padding."""

IndexerMode = Literal["frozen", "warm_up", "sparse", "probe"]
"""What the indexers do in a forward.

- `frozen`: they select, without gradient (pre-training, RL, inference).
- `warm_up`: attention stays dense and they learn from it over all keys.
- `sparse`: they select, and learn on what they selected.
- `probe`: attention stays dense; their loss and the mass that they would keep are measured.
"""

Attend = Callable[
    [int, tuple[Tensor, Tensor, Tensor, Tensor, Tensor], float, "IndexQuery | None", int], Tensor
]
"""(layer, parts, softmax scale, index query, selected keys) -> the heads' outputs (B, T, H, V).

The parts are queries without and with position, the new tokens' latents and rotated keys, and the
up-projection, as in `ops.attention`. The index query, whose keys are the new tokens' too, is None
for a layer without an indexer of its own.
"""


@dataclass(frozen=True)
class Surroundings:
    """Shared by the layers of one forward."""

    turn_BTR: Tensor
    """Rotation of each query's position, complex (B, T, R / 2)."""
    queries: int
    """Tokens of this forward."""
    documents_BT: Tensor | None
    """Document of each token of a packed row, -1 for padding; None: one document a row."""
    visible_BTS: Tensor | None
    """Keys of each query as a mask; None: causal, or one query that sees all, or too long."""
    has_prefixes: bool
    """Do documents see more than themselves? Only the mask says so."""
    segments: list[tuple[int, int, int]] | None
    """Row, begin and end of each document, where the rows are too long for a mask."""
    cache: LatentCache | None
    """Keys of earlier tokens; None: the queries' own keys are all there are."""
    absorbed: bool
    """Run attention over the latent instead of expanded heads."""
    indexer: IndexerMode
    """What the indexers do."""
    most_visible: int | None = None
    """Most keys that a query sees, where a mask tells; None: as many as there are."""
    attend: "Attend | None" = None
    """Attention over keys that stand elsewhere (a pool), in fixed order; None: the layer's own."""

    @property
    def keys(self) -> int:
        """Keys of the last query."""
        return self.queries + (self.cache.length_tokens if self.cache is not None else 0)

    def narrows(self, topk: int) -> bool:
        """Does any query see more than `topk` keys?"""
        return (self.keys if self.most_visible is None else self.most_visible) > topk

    @property
    def index_learns(self) -> bool:
        """Is a loss of the indexers wanted?"""
        return self.indexer != "frozen"

    @property
    def is_dense(self) -> bool:
        """Does attention see every visible key whatever the indexers say?"""
        return self.indexer in ("warm_up", "probe")

    @property
    def probes(self) -> bool:
        """Is the mass of attention that a selection holds wanted?"""
        return self.indexer == "probe"

    def gathers(self, topk: int) -> bool:
        """Does attention gather the selected keys, rather than mask the others?"""
        if self.has_prefixes:
            return False
        if self.indexer == "sparse" or self.keys > WHOLE_MASK_TOKENS:
            return True
        return gather_is_faster(self.queries, self.keys, topk)


def make_surroundings(
    turn_BTR: Tensor,
    documents_BT: Tensor | None,
    cache: LatentCache | None,
    *,
    queries: int,
    absorbed: bool,
    indexer: IndexerMode,
    prefixes_BT: Tensor | None = None,
) -> Surroundings:
    """Work out who sees whom."""
    assert documents_BT is None or cache is None, "packed rows have no cache"
    has_prefixes = prefixes_BT is not None
    if has_prefixes:
        assert documents_BT is not None, "a prefix is a document of the row"
        assert queries <= WHOLE_MASK_TOKENS, "prefixes exist as masks alone"
        assert indexer == "frozen", "no indexer learns across prefixes"
    visible_BTS, segments, most_visible = None, None, None
    if documents_BT is not None and queries <= WHOLE_MASK_TOKENS:
        visible_BTS = documents_BT[:, :, None] == documents_BT[:, None]
        if prefixes_BT is not None:
            visible_BTS |= prefixes_BT[:, :, None] == documents_BT[:, None]
        visible_BTS = visible_BTS.tril()
        if visible_BTS.is_cpu:  # elsewhere the answer would have to be waited for
            most_visible = int(visible_BTS.sum(-1, dtype=torch.int32).max())
    elif documents_BT is not None:
        segments = _segments(documents_BT)
    elif cache is not None and queries > 1 and cache.length_tokens:
        keys = torch.arange(cache.length_tokens + queries, device=turn_BTR.device)
        visible_BTS = (keys <= keys[cache.length_tokens :, None])[None]
    return Surroundings(
        turn_BTR,
        queries,
        documents_BT,
        visible_BTS,
        has_prefixes,
        segments,
        cache,
        absorbed,
        indexer,
        most_visible,
    )


def _segments(documents_BT: Tensor) -> list[tuple[int, int, int]]:
    """Return row, begin and end of each run of one document, padding included."""
    segments = []
    for row, documents in enumerate(documents_BT.tolist()):
        begin = 0
        for end in range(1, len(documents) + 1):
            if end == len(documents) or documents[end] != documents[begin]:
                segments.append((row, begin, end))
                begin = end
    return segments
