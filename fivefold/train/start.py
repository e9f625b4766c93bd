"""Where a later gradient stage starts: the checkpoint of an earlier one, and its tokenizer."""

from pathlib import Path

import torch

from fivefold.errors import ConfigError, MismatchError
from fivefold.models.config import read_config
from fivefold.models.transformer import Transformer
from fivefold.parallel.build import ReleasedWeights, build_model
from fivefold.stage import StageContext
from fivefold.text.tokenizer import Tokenizer, load_tokenizer


def start_from(
    start: Path, tokenizer_directory: Path, context: StageContext, *, longest_tokens: int
) -> tuple[Transformer, Tokenizer]:
    """Load the model of `start/checkpoint` to train it further.

    Raises:
        MismatchError: the checkpoint was trained with another tokenizer than the tokens.
        ConfigError: `longest_tokens` exceeds the model's context.
    """
    torch.set_num_threads(context.threads)
    checkpoint = start / "checkpoint"
    tokenizer = load_tokenizer(tokenizer_directory)
    trained_with = load_tokenizer(checkpoint).content_hash
    if trained_with != tokenizer.content_hash:
        raise MismatchError(
            expected=f"a checkpoint with the tokenizer of the tokens ({tokenizer.content_hash})",
            found=f"`{checkpoint}` with another ({trained_with})",
            fix="Start from a checkpoint of the same run, or tokenise with its tokenizer",
        )
    limit = read_config(checkpoint).max_position_embeddings
    if longest_tokens > limit:
        raise ConfigError(
            expected=f"contexts within the checkpoint's `max_position_embeddings` ({limit})",
            found=f"{longest_tokens} tokens",
            fix="Shorten the context, or pre-train with a larger "
            "`pretrain.model.max_position_embeddings`",
        )
    weights = ReleasedWeights(checkpoint)
    model = build_model(weights.config, weights, context.ranks, context.device)
    return model.train(), tokenizer
