"""Held-out loss in bits per byte, which compares across tokenizers.

Every token of a document is predicted exactly once: rows overlap by one token. Bits of all tokens,
the end of the document included, divided by the bytes that the tokens stand for.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fivefold.data.loader import Rows
from fivefold.data.packed_source import read_summary
from fivefold.data.planted_tokens import read_planted_rows
from fivefold.metrics import StageMetrics
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED, token_logprobs
from fivefold.train.batch import make_batch, microbatches
from fivefold.train.config import GradientConfig


class Validation(NamedTuple):
    """Held-out loss."""

    loss_nats: float
    """Mean over tokens, nats."""
    bits_per_byte: float
    """Bits over the UTF-8 bytes of the predicted tokens."""


@torch.inference_mode()
def evaluate(
    model: Transformer,
    rows: Rows,
    token_bytes: np.ndarray,
    *,
    microbatch_rows: int,
    chunk_tokens: int,
) -> Validation:
    """Score `rows`; `token_bytes` int32 (W,) are the bytes of each id, 0 for special tokens."""
    device = model.lm_head.weight.device
    bytes_W = torch.from_numpy(token_bytes.astype(np.int64)).to(device)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    tokens = byte_count = 0
    for part in microbatches(rows, microbatch_rows):
        batch = make_batch(part, 0, device)
        hidden = model(
            batch.ids_BT, positions_BT=batch.positions_BT, documents_BT=batch.documents_BT
        ).hidden_BTD
        labels = batch.labels_BT[0].flatten()
        weight = model.lm_head.weight
        nats -= token_logprobs(hidden.flatten(0, 1), weight, labels, chunk_tokens).double().sum()
        real = labels[labels != IGNORED]
        tokens += real.numel()
        byte_count += int(bytes_W[real].sum())
    return Validation(float(nats) / max(tokens, 1), float(nats) / math.log(2) / max(byte_count, 1))


class Examiner:
    """Held-out rows of one context length, ready to be scored."""

    def __init__(
        self,
        model: Transformer,
        rows: Rows,
        token_bytes: np.ndarray,
        config: GradientConfig,
        microbatch_rows: int,
    ) -> None:
        """Choose `config.validation_rows` rows, spread evenly, for validations on the way."""
        count = min(config.validation_rows, len(rows.ids))
        chosen = np.linspace(0, len(rows.ids) - 1, count).round().astype(np.int64)
        self.some = rows.part(chosen)
        self.all = rows
        self._model = model
        self._token_bytes = token_bytes
        self._microbatch_rows = microbatch_rows
        self._chunk_tokens = config.loss_chunk_tokens

    def on_some_rows(self) -> dict[str, float]:
        """Score the same part of the rows at every call, as metrics."""
        found = self._score(self.some)
        return {
            "validation/loss_nats": found.loss_nats,
            "validation/bits_per_byte": found.bits_per_byte,
        }

    def on_all_rows(self) -> Validation:
        """Score every held-out row."""
        return self._score(self.all)

    def _score(self, rows: Rows) -> Validation:
        return evaluate(
            self._model,
            rows,
            self._token_bytes,
            microbatch_rows=self._microbatch_rows,
            chunk_tokens=self._chunk_tokens,
        )


def measure_planted(
    model: Transformer,
    tokens: Path,
    context_tokens: int,
    pad_id: int,
    config: GradientConfig,
    microbatch_rows: int,
) -> Callable[[], dict[str, float]]:
    """Return the function that scores the answers about planted facts, as metrics.

    Only the tokens of answers count; none are planted for some contexts, and then there is nothing
    to measure.
    """
    if str(context_tokens) not in read_summary(tokens)["planted"]:
        return dict
    rows, answer_mask = read_planted_rows(tokens, context_tokens, pad_id)
    only_answers = torch.from_numpy(answer_mask[:, 1:])

    @torch.inference_mode()
    def measure() -> dict[str, float]:
        device = model.lm_head.weight.device
        nats = torch.zeros((), dtype=torch.float64, device=device)
        for number, part in enumerate(microbatches(rows, microbatch_rows)):
            batch = make_batch(part, 0, device)
            begin = number * microbatch_rows
            chosen = only_answers[begin : begin + len(part.ids)].to(device)
            labels = batch.labels_BT[0].where(chosen, IGNORED).flatten()
            hidden = model(
                batch.ids_BT, positions_BT=batch.positions_BT, documents_BT=batch.documents_BT
            ).hidden_BTD
            nats -= token_logprobs(
                hidden.flatten(0, 1), model.lm_head.weight, labels, config.loss_chunk_tokens
            ).sum()
        return {"validation/planted_loss_nats": float(nats) / int(only_answers.sum())}

    return measure


@torch.inference_mode()
def probe_indexers(model: Transformer, rows: Rows, microbatch_rows: int) -> dict[str, float]:
    """Compare each indexer with its layer's dense attention, as metrics.

    `index/kl_nats_layerN` is the divergence; `index/recall_layerN` the mass of attention on the
    selected keys, `index/best_layerN` the most that as many keys can hold, and
    `index/recent_layerN` what the last keys hold.
    """
    device = model.lm_head.weight.device
    sums: dict[str, float] = {}
    queries = 0
    for part in microbatches(rows, microbatch_rows):
        batch = make_batch(part, 0, device, keeps_padding=True)
        around = model.surroundings(batch.positions_BT, batch.documents_BT, indexer="probe")
        losses = model(batch.ids_BT, around=around).index_losses
        queries += int(losses[0].queries) if losses else 0
        for layer, loss in enumerate(losses):
            assert loss.mass is not None, "a probe measures mass"
            found = {
                "kl_nats": loss.total,
                "recall": loss.mass.selected,
                "best": loss.mass.best,
                "recent": loss.mass.recent,
            }
            for name, value in found.items():
                key = f"index/{name}_layer{layer}"
                sums[key] = sums.get(key, 0.0) + float(value)
    return {name: value / max(queries, 1) for name, value in sums.items()}


def record_final(examiner: Examiner, step: int, tokens: int, metrics: StageMetrics) -> Validation:
    """Score all held-out rows at the end of a stage and write the result."""
    final = examiner.on_all_rows()
    metrics.write_once(
        step,
        {
            "train/tokens": tokens,
            "validation/final_loss_nats": final.loss_nats,
            "validation/final_bits_per_byte": final.bits_per_byte,
        },
        shown=f"all held-out documents: {final.bits_per_byte:.3f} bits/byte",
    )
    return final
