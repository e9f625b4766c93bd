"""New weights from a directory or from the wire, checked whole before the engine sees them.

Weights arrive under their released names, as every trainer writes them. They are put together in a
second copy of the model while the old one goes on serving; the engine replaces its own between two
steps. What is truncated, missing, unknown or of another shape is refused, and nothing has changed.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fivefold.errors import CorruptFileError, MismatchError
from fivefold.models.config import ModelConfig, config_to_released
from fivefold.models.convert import read_checkpoint, released_tensors
from fivefold.models.transformer import Transformer
from fivefold.serve.weights import check_tensors


def read_disk_weights(model: Transformer, directory: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint of the served model's config.

    Raises:
        MissingFileError, CorruptFileError, MismatchError: it is not a whole checkpoint, or not one
        of this model.
    """
    loaded = read_checkpoint(directory, dtype=model.lm_head.weight.dtype)
    # As released, where two ways to say the same are one.
    told, wanted = (config_to_released(each.config) for each in (loaded, model))
    for name in sorted(ModelConfig.model_fields.keys() & (told.keys() | wanted.keys())):
        served, found = wanted.get(name), told.get(name)
        if served != found:
            # The same shapes with another selection or rotation would serve other numbers.
            raise MismatchError(
                expected=f"weights of a model with `{name}` of {served!r}, as it is served",
                found=f"{found!r} in `{directory}`",
                fix="Serve that checkpoint on its own; the old weights go on serving",
            )
    return loaded.state_dict()


def read_tensor_weights(model: Transformer, files: Sequence[bytes]) -> dict[str, Tensor]:
    """Return the state dict that safetensors files hold together.

    Raises:
        CorruptFileError: a file is truncated or of another kind.
        MismatchError: tensors are missing, unknown or of another shape.
    """
    given: dict[str, Tensor] = {}
    for number, raw in enumerate(files):
        try:
            given.update(safetensors.torch.load(raw))
        except SafetensorError as error:
            raise CorruptFileError(
                expected=f"a whole safetensors file (part {number} of {len(files)})",
                found=f"{len(raw)} bytes that are none: {error}",
                fix="Send it again; the old weights go on serving",
            ) from error
    with torch.no_grad():
        fresh = copy.deepcopy(model)
        targets = dict(released_tensors(fresh))
        check_tensors(targets, given, "Send all weights under their released names")
        for name, target in targets.items():
            target.copy_(given[name])
    return fresh.state_dict()
