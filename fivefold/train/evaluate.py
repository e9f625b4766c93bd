"""Held-out loss in bits per byte, which compares across tokenizers.

Every token of a document is predicted exactly once: rows overlap by one token. Bits of all tokens,
the end of the document included, divided by the bytes that the tokens stand for.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from fivefold.data.loader import Rows
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
        self._some = Rows(
            rows.ids[chosen], rows.document[chosen], rows.positions[chosen], rows.source[chosen]
        )
        self._all = rows
        self._model = model
        self._token_bytes = token_bytes
        self._microbatch_rows = microbatch_rows
        self._chunk_tokens = config.loss_chunk_tokens

    def on_some_rows(self) -> Validation:
        """Score the same part of the rows at every call."""
        return self._score(self._some)

    def on_all_rows(self) -> Validation:
        """Score every held-out row."""
        return self._score(self._all)

    def _score(self, rows: Rows) -> Validation:
        return evaluate(
            self._model,
            rows,
            self._token_bytes,
            microbatch_rows=self._microbatch_rows,
            chunk_tokens=self._chunk_tokens,
        )


def record_final(examiner: Examiner, step: int, tokens: int, metrics: StageMetrics) -> Validation:
    """Score all held-out rows at the end of a stage and write the result."""
    final = examiner.on_all_rows()
    metrics.write(
        step,
        {
            "train/tokens": tokens,
            "validation/final_loss_nats": final.loss_nats,
            "validation/final_bits_per_byte": final.bits_per_byte,
        },
        shown=f"all held-out documents: {final.bits_per_byte:.3f} bits/byte",
    )
    return final
