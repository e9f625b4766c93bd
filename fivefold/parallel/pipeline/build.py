"""A model of which only some parameters exist: a rank's stages, built without the rest.

The other parameters stay on the meta device: they have names, shapes and flags, and no bytes. What
exists is filled from a `Source`, one tensor at a time. Random weights are those of one process, bit
for bit: the generator passes over what other ranks hold as if it had drawn it.

Surprise: passing over relies on how torch's CPU generator fills fp32 tensors (one 32-bit number an
element, 16 more where the last vector is not full); a test compares states for many sizes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig, read_config
from fivefold.models.convert import released_tensors
from fivefold.models.initialise import initialise
from fivefold.models.stored import StoredWeights
from fivefold.models.transformer import Transformer

_VECTOR = 16
"""Elements that torch draws at a time; fewer are drawn one by one."""
_SKIPPED_AT_ONCE = 2**20
"""Numbers of 4 bytes that are drawn in vain at a time."""


class Source(Protocol):
    """Where weights come from."""

    def fill(self, model: Transformer) -> None:
        """Fill the parameters and saved buffers that are not on the meta device."""
        ...


class InitialWeights:
    """Random weights, a function of the seed alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fill(self, model: Transformer) -> None:
        """Draw what exists and pass over the rest."""
        initialise(_Drawn(model), model.config, torch.Generator().manual_seed(self._seed))


class ReleasedWeights:
    """The weights of a Hugging Face directory."""

    def __init__(self, directory: Path) -> None:
        """Look which weights there are.

        Raises:
            MissingFileError, CorruptFileError: the directory is not a whole checkpoint.
        """
        self._stored = StoredWeights(directory)
        self.config = self._stored.fitted(read_config(directory))
        """Of the model that is stored."""

    def fill(self, model: Transformer) -> None:
        """Read what exists, file by file.

        Raises:
            MismatchError, CorruptFileError: the files and the model do not fit each other.
        """
        names = {name for name, _ in released_tensors(model)}
        self._stored.check_names(names, model.config)
        self._stored.fill(pair for pair in released_tensors(model) if not pair[1].is_meta)


def build_part(
    config: ModelConfig,
    source: Source,
    holds: Callable[[str], bool],
    device: torch.device | str = "cpu",
) -> Transformer:
    """Return the fp32 model of `config` with the parameters that this rank `holds`, filled.

    Raises:
        MismatchError, CorruptFileError: the source does not fit the config.
    """
    with torch.device("meta"):
        model = Transformer(config)
    for name, parameter in list(model.named_parameters()):
        if holds(name):
            replace_parameter(model, name, torch.empty(parameter.shape, device=device))
    # Buffers are small, and every rank counts and moves the biases of all routers.
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        whole = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
        model.get_submodule(owner).register_buffer(leaf, whole, persistent=leaf != "speeds_R")
    model.speeds_R = Transformer.rotary_speeds(config).to(device)
    source.fill(model)
    return model


def replace_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of any shape and device in the place of a parameter; its flag stays."""
    owner, _, leaf = name.rpartition(".")
    needs = model.get_parameter(name).requires_grad
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=needs))


def skip_normal(count: int, generator: torch.Generator) -> None:
    """Leave a CPU generator as a contiguous fp32 tensor of `count` normal numbers would."""
    if count < _VECTOR:
        torch.empty(count).normal_(generator=generator)
        return
    left = count + (_VECTOR if count % _VECTOR else 0)
    scratch = torch.empty(min(left, _SKIPPED_AT_ONCE), dtype=torch.int32)
    while left:
        part = scratch[: min(left, len(scratch))]
        part.random_(generator=generator)
        left -= len(part)


class _Drawn(nn.Module):
    """A model as `initialise` sees it: every parameter takes part, only what exists is kept."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self._model = [model]

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        """Yield what takes the place of each parameter, in the order of definition."""
        for name, parameter in self._model[0].named_parameters():
            yield name, _Target(parameter)

    def named_buffers(self, *_: Any, **__: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers."""
        yield from self._model[0].named_buffers()


class _Target:
    """One parameter, filled on the CPU as one process does, whatever its device."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def zero_(self) -> None:
        """Fill with zeros."""
        self.fill_(0.0)

    def fill_(self, value: float) -> None:
        """Fill with one number."""
        if not self._tensor.is_meta:
            self._tensor.fill_(value)

    def normal_(self, mean: float, deviation: float, *, generator: torch.Generator) -> None:
        """Draw, or pass over what is not here."""
        if self._tensor.is_meta:
            skip_normal(self._tensor.numel(), generator)
        elif self._tensor.device.type == "cpu":
            self._tensor.normal_(mean, deviation, generator=generator)
        else:
            drawn = torch.empty(self._tensor.shape)
            self._tensor.copy_(drawn.normal_(mean, deviation, generator=generator))
