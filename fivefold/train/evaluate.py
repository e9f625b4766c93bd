"""Held-out loss in bits per byte, which compares across tokenizers.

Every token of a document is predicted exactly once: rows overlap by one token. Bits of all tokens,
the end of the document included, divided by the bytes that the tokens stand for.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from fivefold.data.loader import Rows
from fivefold.models.transformer import Transformer
from fivefold.ops.chunked_cross_entropy import IGNORED, token_logprobs
from fivefold.train.batch import make_batch, microbatches


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
