"""A whole checkpoint of a tiny model, for commands that start from one."""

from pathlib import Path

import torch

from fivefold.models.convert import write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.text.bpe import train_tokenizer
from fivefold.text.config import TokenizerConfig
from fivefold.text.tokenizer import Tokenizer

_VOCABULARY = 460
_TEXT = "The keeper counted 1234 waves, then slept. Which letter comes first in the alphabet? "


def write_tiny(checkpoint: Path, *, seed: int = 0) -> Path:
    """Write a model that knows nothing, with its tokenizer and chat template."""
    trained = train_tokenizer([_TEXT] * 9, TokenizerConfig(vocab_size=_VOCABULARY))
    tokenizer = Tokenizer(trained)
    config = preset(
        "nano",
        vocab_size=_VOCABULARY,
        num_hidden_layers=2,
        hidden_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.05,
        eos_token_id=tokenizer.stop_ids,
    )
    model = Transformer(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    write_checkpoint(model, checkpoint)
    tokenizer.save_pretrained(checkpoint)
    return checkpoint
