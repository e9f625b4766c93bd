"""Forwards whose numbers depend on each token and its own past alone, bit for bit.

The modules are the model's own; products of weights run under `ops.batch_invariant`, and attention
is handed to `ops.stable_attention`, for which every query names the places of its keys. Where these
stand is the only difference between the two users: the trainer's keys are those of the forward
itself, the serving engine's stand in its pool. So the engine's log-probabilities are the trainer's,
and a ratio between them is exactly one.

Surprise: nothing here may be recomputed in the backward pass, which runs outside of
`BatchInvariant`. The places of all keys are one table of tokens x keys: for the short rows of RL.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from fivefold.models.indexer import IndexQuery
from fivefold.models.transformer import Output, Transformer
from fivefold.ops.batch_invariant import BatchInvariant
from fivefold.ops.stable_attention import stable_attention, stable_selection

Store = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(layer, new rows [latent | rotated key], new index keys) -> the tables that places point into."""


class StableAttention:
    """Attention of one forward; remembers the selection for layers that share it."""

    def __init__(self, place_PS: Tensor, store: Store) -> None:
        """Attend each of P queries to the places that it names, in the tables of `store`."""
        self._place_PS, self._store = place_PS, store
        self._picked_PK = place_PS

    def __call__(
        self,
        layer: int,
        parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        scale: float,
        index: IndexQuery | None,
        topk: int,
    ) -> Tensor:
        """Return the heads' outputs (B, T, H, V) of one layer; see `Surroundings.attend`."""
        q_nope, q_rope, latent, rope, kv_b_HC = parts
        new_TX = torch.cat([latent, rope], -1).flatten(0, 1)
        new_TJ = None if index is None else index.key_BSJ.flatten(0, 1)
        table_SX, table_SJ = self._store(layer, new_TX, new_TJ)
        if index is not None:
            assert table_SJ is not None, "a layer with an indexer keeps index keys"
            q_PIJ, weight_PI = index.q_BTIJ.flatten(0, 1), index.weight_BTI.flatten(0, 1)
            self._picked_PK = stable_selection(q_PIJ, table_SJ, weight_PI, self._place_PS, topk)
        q_nope_PHN, q_rope_PHR = q_nope.flatten(0, 1), q_rope.flatten(0, 1)
        out_PHV = stable_attention(
            q_nope_PHN, q_rope_PHR, table_SX, self._picked_PK, kv_b_HC, scale
        )
        return out_PHV.view(*q_nope.shape[:3], -1)


def stable_forward(
    model: Transformer,
    ids_BT: Tensor,
    *,
    positions_BT: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> Output:
    """Run the main stack as the serving engine's deterministic mode does; differentiable.

    `documents_BT` names the document of each token of a packed row, whose tokens stand together, -1
    for padding, which sees itself; with it goes `positions_BT`, that of each token in its document.
    """
    assert not any(block.recompute for block in model.layers), "the stable forward is kept"
    rows, tokens = ids_BT.shape
    if positions_BT is None:
        positions_BT = torch.arange(tokens, device=ids_BT.device).expand(rows, -1)
    own = _own_places(positions_BT, documents_BT)
    around = dataclasses.replace(
        model.surroundings(positions_BT, absorbed=True),
        attend=StableAttention(own, lambda _layer, rows_TX, rows_TJ: (rows_TX, rows_TJ)),
    )
    with BatchInvariant():
        return model(ids_BT, positions_BT=positions_BT, around=around)


def stable_logprobs(model: Transformer, hidden_BTD: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the log-probability of each token but the first, (B, T - 1)."""
    with BatchInvariant():
        logits_BTW = model.logits(hidden_BTD[:, :-1])
    return logits_BTW.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]


def _own_places(positions_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Return where the keys of each query stand among all tokens, (B x T, S), -1 for none."""
    rows, tokens = positions_BT.shape
    places_T = torch.arange(rows * tokens, device=positions_BT.device)
    seen_T = positions_BT.flatten() + 1
    if documents_BT is not None:
        seen_T = torch.where(documents_BT.flatten() < 0, 1, seen_T)
    steps_S = torch.arange(int(seen_T.max()), device=positions_BT.device)
    first_T = places_T - seen_T + 1
    return torch.where(steps_S < seen_T[:, None], first_T[:, None] + steps_S, -1)


def project_stably(model: Transformer, hidden_MD: Tensor) -> Tensor:
    """Return the logits of (M, D), each row by itself."""
    with BatchInvariant():
        return model.logits(hidden_MD)
