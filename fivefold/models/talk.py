"""Text in, text out: a checkpoint with its tokenizer, for the command line.

One request at a time over `models.generate`; the tokenizer stays outside the model.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from fivefold.errors import ConfigError, MismatchError
from fivefold.models.convert import read_checkpoint
from fivefold.models.generate import Sampling, stream
from fivefold.text.tokenizer import StreamDecoder, load_tokenizer


class Talker:
    """A loaded checkpoint that continues texts."""

    def __init__(self, checkpoint: Path, device: str, sampling: Sampling, seed: int) -> None:
        """Load model and tokenizer.

        Raises:
            MissingFileError, CorruptFileError, MismatchError: the directory is not a whole
            checkpoint.
        """
        self._model = read_checkpoint(checkpoint, device=device)
        self._tokenizer = load_tokenizer(checkpoint)
        rows = self._model.config.vocab_size
        if self._tokenizer.vocab_size > rows:
            raise MismatchError(
                expected=f"a tokenizer of at most {rows} ids, the model's `vocab_size`",
                found=f"{self._tokenizer.vocab_size} ids in `{checkpoint}`",
                fix="Put the tokenizer that the model was trained with beside it",
            )
        self._sampling = sampling
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def continue_text(self, prompt: str, max_new_tokens: int) -> Iterator[str]:
        """Yield pieces of the continuation as they are complete characters.

        Raises:
            ConfigError: prompt and new tokens do not fit the model's context.
        """
        ids = self._tokenizer.prompt_ids(prompt)
        room = self._model.config.max_position_embeddings - len(ids)
        if room < 1:
            raise ConfigError(
                expected=f"a prompt of fewer than {room + len(ids)} tokens, the model's context",
                found=f"{len(ids)} tokens",
                fix="Shorten the prompt",
            )
        decoder = StreamDecoder(self._tokenizer, skip_special=True)
        prompt_BT = torch.tensor([ids], device=self._device)
        steps = stream(
            self._model, prompt_BT, min(max_new_tokens, room), self._sampling, self._generator
        )
        for next_B in steps:
            token = int(next_B[0])
            if token in self._tokenizer.stop_ids:
                break
            yield decoder.push(token)
        yield decoder.finish()
