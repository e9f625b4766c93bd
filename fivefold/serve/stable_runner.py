"""The deterministic runner: the model's own modules over the paged pool.

Every token is a query that names the slots of its keys, so that neither the batch nor the chunk nor
a cache hit leaves a trace in its bits; `models.stable` has the rule, and gives a trainer the same
numbers. It is also the way to serve a model whose `Linear` modules were replaced.
"""

import dataclasses
import sys

import torch
from torch import Tensor

from fivefold.models.stable import StableAttention, project_stably
from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import Transformer
from fivefold.ops.batch_invariant import BatchInvariant
from fivefold.serve.batch import KeyMap
from fivefold.serve.pool import CachePool
from fivefold.serve.runner import Forward


class StableRunner:
    """Slow and steady; see `runner.Runner` for the methods."""

    most_decoded = sys.maxsize
    """Every token is a query row of its own."""

    def __init__(self, model: Transformer, pool: CachePool) -> None:
        """Run `model` with its keys in `pool`."""
        self._model, self._pool = model, pool

    def refresh(self) -> None:
        """Nothing is derived from the weights."""

    @torch.inference_mode()
    def forward(self, ids_T: Tensor, keys: KeyMap) -> Forward:
        """See `Runner`."""
        with BatchInvariant():
            output = self._model(
                ids_T[None],
                positions_BT=keys.position_T[None],
                around=self._around(keys),
            )
        return Forward(output.hidden_BTD[0], [routed.chosen_TA for routed in output.routing])

    @torch.inference_mode()
    def draft(self, hidden_TD: Tensor, next_T: Tensor, keys: KeyMap) -> Tensor:
        """See `Runner`."""
        mtp = self._model.mtp
        assert mtp is not None, "drafting needs the MTP layer"
        ahead_BTD = self._model.embed_tokens(next_T[None])
        with BatchInvariant():
            return mtp(hidden_TD[None], ahead_BTD, self._around(keys)).state_BTD[0]

    @torch.inference_mode()
    def logits(self, hidden_MD: Tensor) -> Tensor:
        """See `Runner`."""
        return project_stably(self._model, hidden_MD)

    def _around(self, keys: KeyMap) -> Surroundings:
        decoded = keys.decoded
        assert decoded is not None, "every token is a query row of its own"
        slot_PS = decoded.slot_PS
        if decoded.bias_P1S is not None:
            slot_PS = slot_PS.masked_fill(decoded.bias_P1S[:, 0] < 0, -1)

        def store(
            layer: int, new_TX: Tensor, new_TJ: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            cache = self._pool.layers[layer]
            cache.latent_SX.index_copy_(0, keys.slot_T, new_TX)
            if new_TJ is not None and cache.index_SJ is not None:
                cache.index_SJ.index_copy_(0, keys.slot_T, new_TJ.to(cache.index_SJ.dtype))
            return cache.latent_SX, cache.index_SJ

        around = self._model.surroundings(keys.position_T[None], absorbed=True)
        return dataclasses.replace(around, attend=StableAttention(slot_PS, store))
