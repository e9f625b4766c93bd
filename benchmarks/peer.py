"""The same weights in Fivefold and in transformers."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fivefold.models.config import ModelConfig
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.transformer import Transformer


def build_pair(
    config: ModelConfig, ours_dtype: torch.dtype, peer_dtypes: tuple[torch.dtype, ...]
) -> tuple[Transformer, dict[torch.dtype, Any]]:
    """Return our model, and the peer in each dtype, all with one set of random weights.

    The peer is `Any`: transformers types its models by what they inherit at run time.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "checkpoint"
        write_checkpoint(model, directory)
        ours = read_checkpoint(directory, dtype=ours_dtype)
        peers = {
            dtype: AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
            for dtype in peer_dtypes
        }
    return ours, peers
