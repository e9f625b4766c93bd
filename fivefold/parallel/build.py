"""A model of which this rank's part alone exists, drawn or read without the rest.

Each parameter is on the meta device with its name, shape and flag. What a rank holds whole is
filled in place; of what it holds a part of, by heads, columns, experts or rows, the part stands
beside (`part.HeldPart`) until the training takes it. What other stages of a pipeline hold has no
bytes. A `Source` fills one tensor at a time. Random weights are those of one process, bit for bit:
the generator passes over what other ranks hold as if it had drawn it, and a parameter that is cut
is drawn whole and dropped.

Surprise: passing over relies on how torch's CPU generator fills fp32 tensors (one 32-bit number an
element, 16 more where the last vector is not full); a test compares states for many sizes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fivefold.models.config import ModelConfig, read_config
from fivefold.models.convert import released_pieces, released_tensors
from fivefold.models.initialise import initialise
from fivefold.models.stored import StoredWeights, Target
from fivefold.models.transformer import Transformer
from fivefold.parallel.config import ParallelConfig, rank_table
from fivefold.parallel.mesh import Mesh
from fivefold.parallel.part import Box, HeldPart, held_box, put_parameter, replace_parameter
from fivefold.parallel.pipeline.placement import place_stages
from fivefold.parallel.tensor import check_divides
from fivefold.stage import Ranks

_VECTOR = 16
"""Elements that torch draws at a time; fewer are drawn one by one."""
_SKIPPED_AT_ONCE = 2**20
"""Numbers of 4 bytes that are drawn in vain at a time."""


class Source(Protocol):
    """Where weights come from."""

    def fill(self, model: Transformer) -> None:
        """Fill what is held of the parameters, and the saved buffers."""
        ...


class InitialWeights:
    """Random weights, a function of the seed alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fill(self, model: Transformer) -> None:
        """Draw what is held and pass over the rest."""
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
        """Read what is held, file by file.

        Raises:
            MismatchError, CorruptFileError: the files and the model do not fit each other.
        """
        names = {name for name, _ in released_tensors(model)}
        self._stored.check_names(names, model.config)
        self._stored.fill(_targets(model))


def build_model(
    config: ModelConfig, source: Source, ranks: Ranks, device: str | torch.device
) -> Transformer:
    """Return the fp32 model with the weights that this rank trains, or all.

    Raises:
        ConfigError: the model cannot be cut as the mesh asks.
        MismatchError, CorruptFileError: the source does not fit the config.
    """
    if not isinstance(ranks, Mesh):
        return build_part(config, source, ParallelConfig(), 0, device)
    return build_part(config, source, ranks.config, ranks.rank, device)


def build_part(
    config: ModelConfig,
    source: Source,
    parallel: ParallelConfig,
    rank: int,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Return the fp32 model of `config` with what a rank of the world holds of it.

    Raises:
        ConfigError: the model cannot be cut as the mesh asks.
        MismatchError, CorruptFileError: the source does not fit the config.
    """
    check_divides(config, parallel)
    holds = _held_names(config, parallel, rank)
    with torch.device("meta"):
        model = Transformer(config)
    for name, parameter in list(model.named_parameters()):
        if holds(name):
            shape = tuple(parameter.shape)
            box = held_box(name, shape, parallel, rank)
            held = torch.empty(box.of(parameter).shape, device=device)
            if box.is_whole(shape):
                replace_parameter(model, name, held)
            else:
                put_parameter(model, name, HeldPart(shape, box, held))
    # Buffers are small, and every rank counts and moves the biases of all routers.
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        whole = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
        model.get_submodule(owner).register_buffer(leaf, whole, persistent=leaf != "speeds_R")
    model.speeds_R = Transformer.rotary_speeds(config).to(device)
    source.fill(model)
    return model


def _held_names(config: ModelConfig, parallel: ParallelConfig, rank: int) -> Callable[[str], bool]:
    """Return which parameters a rank's stages have: without a pipeline, all."""
    if parallel.pp == 1:
        return lambda _: True
    placement = place_stages(config, parallel)
    stage = next(ranks for ranks in rank_table(parallel, "pp") if rank in ranks).index(rank)
    return lambda name: placement.holds(stage, name)


def _targets(model: Transformer) -> Iterator[Target]:
    """Yield what is to be read."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        part, box, first_expert = tensor, None, 0
        if isinstance(tensor, HeldPart):
            assert tensor.held is not None, "parts are read before they are taken"
            part, box = tensor.held, tensor.box
            if ".experts." in name:
                # A stacked tensor, stored expert by expert.
                box, first_expert = None, box.rows.start
        if not part.is_meta:
            for released, piece in released_pieces(name, part, model.config, first_expert):
                shape = tuple(piece.shape if box is None else tensor.shape)
                yield Target(released, piece, shape, None if box is None else box.place)


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
    """A model as `initialise` sees it: every parameter takes part, only what is held is kept."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self._model = [model]

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        """Yield what takes the place of each parameter, in the order of definition."""
        for name, parameter in self._model[0].named_parameters():
            yield name, _Drawing(parameter)

    def named_buffers(self, *_: Any, **__: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers."""
        yield from self._model[0].named_buffers()


class _Drawing:
    """One parameter, filled on the CPU as one process does, whatever its device and part."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._count, self._shape = parameter.numel(), tuple(parameter.shape)
        self._held, self._box = parameter.data, Box(slice(0, self._shape[0]), None)
        if isinstance(parameter, HeldPart):
            assert parameter.held is not None, "parts are drawn before they are taken"
            self._held, self._box = parameter.held, parameter.box

    def zero_(self) -> None:
        """Fill with zeros."""
        self.fill_(0.0)

    def fill_(self, value: float) -> None:
        """Fill with one number."""
        if not self._held.is_meta:
            self._held.fill_(value)

    def normal_(self, mean: float, deviation: float, *, generator: torch.Generator) -> None:
        """Draw, or pass over what is not here."""
        if not self._held.numel() or self._held.is_meta:
            skip_normal(self._count, generator)
        elif self._held.device.type == "cpu" and self._held.numel() == self._count:
            self._held.normal_(mean, deviation, generator=generator)
        else:
            drawn = torch.empty(self._shape)
            self._held.copy_(self._box.of(drawn.normal_(mean, deviation, generator=generator)))
