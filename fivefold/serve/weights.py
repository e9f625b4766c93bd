"""Replace all weights of a served model, or none.

A push that stops half-way must not leave a model of two versions: names and shapes are compared
before the first number is written.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fivefold.errors import MismatchError
from fivefold.models.transformer import Transformer


@torch.no_grad()
def copy_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy a checked state dict into the tensors of the model."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def check_weights(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes before anything is written.

    Raises:
        MismatchError: they are not those of the served model.
    """
    held = model.state_dict()
    missing, unknown = held.keys() - weights.keys(), weights.keys() - held.keys()
    if missing or unknown:
        names = sorted(missing) or sorted(unknown)
        raise MismatchError(
            expected=f"the {len(held)} tensors of the served model",
            found=f"{len(missing)} missing and {len(unknown)} unknown ones, `{names[0]}` the first",
            fix="Send the state dict of a model of the same config; the old weights go on serving",
        )
    for name, tensor in held.items():
        if weights[name].shape != tensor.shape:
            raise MismatchError(
                expected=f"`{name}` of shape {tuple(tensor.shape)}",
                found=f"{tuple(weights[name].shape)}",
                fix="Send weights of the same config; the old weights go on serving",
            )
