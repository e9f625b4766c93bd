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
    """Compare a state dict with the model's before anything is written; see `check_tensors`."""
    check_tensors(model.state_dict(), weights, "Send the state dict of a model of the same config")


def check_tensors(held: Mapping[str, Tensor], given: Mapping[str, Tensor], fix: str) -> None:
    """Compare names, shapes and kinds of number; `fix` tells the sender what to send instead.

    Raises:
        MismatchError: they are not those of the served model.
    """
    fix = f"{fix}; the old weights go on serving"
    missing, unknown = held.keys() - given.keys(), given.keys() - held.keys()
    if missing or unknown:
        names = sorted(missing) or sorted(unknown)
        raise MismatchError(
            expected=f"the {len(held)} tensors of the served model",
            found=f"{len(missing)} missing and {len(unknown)} unknown ones, `{names[0]}` the first",
            fix=fix,
        )
    for name, tensor in held.items():
        sent = given[name]
        if sent.shape != tensor.shape or not sent.is_floating_point():
            raise MismatchError(
                expected=f"`{name}` of shape {tuple(tensor.shape)} in a floating type",
                found=f"{tuple(sent.shape)} in {sent.dtype}",
                fix=fix,
            )
