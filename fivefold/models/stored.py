"""The weight files of a Hugging Face directory: what they hold, and filling tensors from them.

Opens one file at a time and reads one tensor at a time, and only what is asked for, slices too: a
rank that holds a part of the model reads that part.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fivefold.errors import CorruptFileError, MismatchError, MissingFileError
from fivefold.models.config import ModelConfig

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"


class Target(NamedTuple):
    """What is filled from a stored tensor."""

    name: str
    """Of the stored tensor."""
    tensor: Tensor
    """Of any dtype and device."""
    shape: tuple[int, ...]
    """Which the stored tensor must have."""
    place: tuple[slice, ...] | None = None
    """The part of it that is read; None: all."""


class StoredWeights:
    """The tensors of a checkpoint directory, by their released names."""

    def __init__(self, directory: Path) -> None:
        """Read the names in all files.

        Raises:
            MissingFileError: no weight file, or one of those that the index names is not there.
            CorruptFileError: a file is truncated or of another kind.
        """
        self.directory = directory
        self.file_of = _file_of_names(_weight_files(directory))

    def fitted(self, config: ModelConfig) -> ModelConfig:
        """Return the config without the MTP layer where none is stored."""
        mtp = f"model.layers.{config.num_hidden_layers}."
        if not config.num_nextn_predict_layers or any(n.startswith(mtp) for n in self.file_of):
            return config
        logger.warning(
            "%s holds no MTP layer (transformers saves none): loaded without", self.directory
        )
        return config.model_copy(update={"num_nextn_predict_layers": 0})

    def check_names(self, names: set[str], config: ModelConfig) -> None:
        """Compare what is stored with the names of the whole model.

        Known and ignored: copies of the embedding and the head that some converters write beside
        the MTP layer, and the MTP layer itself where the config says that there is none.

        Raises:
            MismatchError: weights that the model would silently leave out.
            CorruptFileError: weights of the model are missing.
        """
        mtp = f"model.layers.{config.num_hidden_layers}."
        inner = ("embed_tokens.", "shared_head.head.") if config.num_nextn_predict_layers else ("",)
        ignored = tuple(mtp + part for part in inner)
        foreign = sorted(n for n in self.file_of if n not in names and not n.startswith(ignored))
        if foreign:
            raise MismatchError(
                expected="weights that all have a place in the model of `config.json`",
                found=f"{len(foreign)} without one, `{foreign[0]}` first",
                fix="Use the unquantised release, with the `config.json` that was saved with it",
            )
        missing = sorted(names - self.file_of.keys())
        if missing:
            raise CorruptFileError(
                expected=f"every weight of the model in `{self.directory}`",
                found=f"{len(missing)} missing, first `{missing[0]}`",
                fix="Copy the checkpoint again, or check that `config.json` belongs to these "
                "weights",
            )

    @torch.no_grad()
    def fill(self, targets: Iterable[Target]) -> None:
        """Copy what is stored into tensors, file by file.

        Raises:
            MismatchError: a stored tensor has another shape than is wanted, or a quantised type.
        """
        wanted: dict[Path, list[Target]] = defaultdict(list)
        for target in targets:
            wanted[self.file_of[target.name]].append(target)
        for file, of_file in wanted.items():
            with safe_open(file, framework="pt") as handle:
                for target in of_file:
                    _copy(handle, target, file)


def _copy(handle: Any, target: Target, file: Path) -> None:
    stored = handle.get_slice(target.name)
    dtype, shape = stored[:1].dtype, tuple(stored.get_shape())
    if dtype.itemsize < 2:
        raise MismatchError(
            expected=f"`{target.name}` in a 16-bit or wider floating type",
            found=f"{dtype} in `{file.name}`",
            fix="Use the unquantised release of this model",
        )
    if shape != target.shape:
        raise MismatchError(
            expected=f"`{target.name}` of shape {target.shape} as `config.json` says",
            found=f"shape {shape} in `{file.name}`",
            fix="Use the `config.json` that was saved with these weights",
        )
    value = handle.get_tensor(target.name) if target.place is None else stored[target.place]
    target.tensor.copy_(value)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                expected=f"a weight map in `{index}`",
                found=str(error),
                fix="Copy the checkpoint again",
            ) from error
        files = [directory / name for name in names]
    else:
        files = sorted(directory.glob("*.safetensors"))
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise MissingFileError(
            expected=f"`model*.safetensors` in `{directory}`",
            found=f"{', '.join(absent[:3])} missing" if absent else "no weight file",
            fix="Give a complete checkpoint directory, for example `runs/nano/pretrain/checkpoint`",
        )
    return files


def _file_of_names(files: list[Path]) -> dict[str, Path]:
    file_of: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                file_of.update(dict.fromkeys(handle.keys(), file))
        except SafetensorError as error:
            raise CorruptFileError(
                expected=f"a whole safetensors file at `{file}`",
                found=str(error),
                fix="Copy the checkpoint again; the file is truncated or of another kind",
            ) from error
    return file_of
