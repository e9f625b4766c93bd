"""The stage `start`: somebody's checkpoint as the beginning of a run.

    checkpoint/       its files, linked and not copied
    tokenizer.json    the same tokenizer, where stages look for one

Later stages see what the links lead to: the digest of this stage is that of their contents. A
checkpoint that was written anew, be it with the same numbers, starts this stage again, and only
what differs starts the later ones.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pydantic
import xxhash

from fivefold.artifact import remove
from fivefold.config import Config
from fivefold.errors import MissingFileError
from fivefold.stage import Stage, StageContext
from fivefold.text.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


class StartConfig(Config):
    """A checkpoint that another run, or somebody else, wrote."""

    path: str = pydantic.Field(min_length=1)
    """A Hugging Face directory."""
    file_times: str
    """Hash over names, sizes and times of its files, which tells that it was written anew."""


class StartStage(Stage):
    """Takes a checkpoint into the run; needs nothing, makes `checkpoint/` and `tokenizer.json`."""

    what = "takes the checkpoint"
    is_seeded = False
    config: StartConfig

    def execute(self, inputs: Mapping[str, Path], out: Path, context: StageContext) -> None:
        """Link its files."""
        remove(out / "checkpoint")
        (out / "checkpoint").mkdir()
        for path in files_of(Path(self.config.path)):
            (out / "checkpoint" / path.name).symlink_to(path.resolve())
        remove(out / "tokenizer.json")
        (out / "tokenizer.json").symlink_to((out / "checkpoint" / "tokenizer.json").resolve())
        logger.info("start: %s", self.config.path)


def start_config(checkpoint: Path) -> StartConfig:
    """Check that a checkpoint can be trained and talked to.

    Raises:
        MissingFileError: no such directory, or one without weights, tokenizer or chat template.
        CorruptFileError, MismatchError: a tokenizer that cannot be read, or not a GLM one.
    """
    if not checkpoint.is_dir():
        raise MissingFileError(
            expected=f"a checkpoint directory at `{checkpoint}`",
            found="no such directory",
            fix="Give a Hugging Face directory, for example `runs/nano/adapt_dsa/checkpoint`",
        )
    needed = {
        "config.json": "the model's shape",
        "model*.safetensors": "its weights",
        "tokenizer.json": "its tokenizer",
        "chat_template.jinja": "its chat template",
    }
    for pattern, what in needed.items():
        if not any(checkpoint.glob(pattern)):
            raise MissingFileError(
                expected=f"`{pattern}`, {what}, in `{checkpoint}`",
                found="no such file",
                fix="Give a whole checkpoint, as every stage of Fivefold writes it",
            )
    load_tokenizer(checkpoint)
    return StartConfig(path=str(checkpoint), file_times=hash_times(files_of(checkpoint)))


def hash_times(files: Iterable[Path]) -> str:
    """Return a hash over names, sizes and times of files, which tells that they changed."""
    times = xxhash.xxh3_128()
    for path in files:
        stat = path.stat()
        times.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return times.hexdigest()[:16]


def files_of(checkpoint: Path) -> list[Path]:
    """Return the files of a checkpoint, by name; directories in it are not part of it."""
    return sorted(path for path in checkpoint.iterdir() if path.is_file())
