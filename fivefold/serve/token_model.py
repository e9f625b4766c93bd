"""A Fivefold checkpoint as a `TokenModel`: one plain forward a batch, entropies in fp32."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fivefold.data.long.scorer import TokenScores
from fivefold.models.convert import read_checkpoint
from fivefold.models.transformer import Transformer
from fivefold.text.tokenizer import Tokenizer, load_tokenizer

_CHUNK_ROWS = 256


class CheckpointModel:
    """See `fivefold.data.long.scorer.TokenModel`."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        """Score by `model`, in the precision of its weights."""
        self._model = model
        self.tokenizer = tokenizer
        self.context_tokens = model.config.max_position_embeddings

    @torch.inference_mode()
    def score_tokens(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Run rows together, padded at their ends, which causal attention does not see."""
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_id
        ids_BT = torch.tensor([[*row, *([pad] * (longest - len(row)))] for row in rows])
        hidden_BTD = self._model(ids_BT).hidden_BTD
        return [
            self._score(hidden_BTD[number, : len(row) - 1], ids_BT[number, 1 : len(row)])
            for number, row in enumerate(rows)
        ]

    def _score(self, hidden_TD: torch.Tensor, target_T: torch.Tensor) -> TokenScores:
        nothing = torch.tensor([torch.nan])
        entropies, logprobs = [nothing], [nothing]
        for begin in range(0, len(target_T), _CHUNK_ROWS):
            part = slice(begin, begin + _CHUNK_ROWS)
            log_p_TW = self._model.logits(hidden_TD[part]).float().log_softmax(-1)
            entropies.append(-(log_p_TW.exp() * log_p_TW).sum(-1))
            logprobs.append(log_p_TW.gather(1, target_T[part, None])[:, 0])
        return TokenScores(torch.cat(entropies).numpy(), torch.cat(logprobs).numpy())


def open_checkpoint(directory: str) -> CheckpointModel:
    """Open a checkpoint on one thread, so that worker processes do not take each other's cores."""
    torch.set_num_threads(1)
    path = Path(directory).expanduser()
    return CheckpointModel(read_checkpoint(path).eval(), load_tokenizer(path))
