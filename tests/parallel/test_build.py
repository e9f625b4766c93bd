"""A rank's part of a model without the rest: the weights of one process, and never more bytes."""

import itertools
import re
import shutil
import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pytest
import torch
from safetensors.torch import load_file, save_file
from team import Team
from tiny_training import TINY
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fivefold.errors import CorruptFileError, MismatchError
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.transformer import Transformer
from fivefold.parallel.build import (
    InitialWeights,
    ReleasedWeights,
    Source,
    build_model,
    build_part,
    skip_normal,
)
from fivefold.parallel.config import ParallelConfig, rank_table
from fivefold.parallel.fsdp import shard_weights
from fivefold.parallel.mesh import Mesh, World
from fivefold.parallel.part import HeldPart, cut_of, is_sharded_late
from fivefold.parallel.pipeline.placement import Placement, place_stages
from fivefold.parallel.tensor import SplitModel, local_of

SHARD_BYTES = 60_000
LAYOUTS = {
    "dp2": ParallelConfig(dp=2),
    "pp2": ParallelConfig(pp=2, mtp_stage="before_last"),
    "pp4": ParallelConfig(pp=4, pieces=(2, 2, 1, 1)),
    "zb_v": ParallelConfig(pp=2, schedule="zb_v"),
    "tp2": ParallelConfig(tp=2),
    "ep2": ParallelConfig(dp=2, ep=2),
    "tp2_ep4": ParallelConfig(dp=2, tp=2, ep=4),
    "tp2_pp2": ParallelConfig(tp=2, pp=2),
    "ep2_pp2_cp2": ParallelConfig(ep=2, pp=2, cp=2),
    # 99 words in runs of 25, the last one shorter.
    "fsdp4": ParallelConfig(fsdp=4),
    "fsdp2_tp2_ep2": ParallelConfig(fsdp=2, tp=2, ep=2),
    # Two ranks along `fsdp` share the same experts, or none do.
    "fsdp4_ep2": ParallelConfig(fsdp=4, ep=2),
    "fsdp2_tp2_ep4": ParallelConfig(fsdp=2, tp=2, ep=4),
    "fsdp2_pp2": ParallelConfig(fsdp=2, pp=2),
}
FAST = {"pp2", "tp2", "ep2", "tp2_pp2", "fsdp2_tp2_ep2"}
every_layout = pytest.mark.parametrize(
    "parallel",
    [
        pytest.param(layout, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, layout in LAYOUTS.items()
    ],
)


def is_real(leaf: object) -> TypeGuard[Tensor]:
    """Is it a tensor with bytes of its own, not one that presents another?"""
    return (
        isinstance(leaf, Tensor) and not isinstance(leaf, DTensor | HeldPart) and not leaf.is_meta
    )


class Meter(TorchDispatchMode):
    """Follows the storages of the tensors that operations take or make, until these are gone."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: set[int] = set()
        self._users: Counter[int] = Counter()
        self._changes: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if is_real(leaf) and id(leaf) not in self._alive:
                storage = leaf.untyped_storage()
                self._alive.add(id(leaf))
                self._count(1, storage.data_ptr(), storage.nbytes())
                weakref.finalize(leaf, self._drop, id(leaf), storage.data_ptr(), storage.nbytes())
        return out

    def _drop(self, leaf: int, address: int, size: int) -> None:
        self._alive.discard(leaf)
        self._count(-1, address, size)

    def _count(self, sign: int, address: int, size: int) -> None:
        before = self._users[address]
        self._users[address] += sign
        if 0 in (before, self._users[address]):
            self._changes.append((address, sign * size))

    def peak_bytes(self, held: Iterable[Tensor]) -> int:
        """Return the bytes of what is held, and the most that stood beside it at any time."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        changes = (size for address, size in self._changes if address not in storages)
        return sum(storages.values()) + max(itertools.accumulate(changes), default=0)


class Reader(TorchDispatchMode):
    """Counts the bytes that are copied from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.read_bytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


def held_tensors(model: Transformer) -> dict[str, Tensor]:
    """Return what stands of each weight and bias, as far as anything does."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        held = tensor.held if isinstance(tensor, HeldPart) else tensor.detach()
        assert held is not None, name
        if not held.is_meta:
            found[name] = held
    return found


def held_by(model: Transformer) -> list[Tensor]:
    return [*held_tensors(model).values(), model.speeds_R]


def held_bytes(model: Transformer) -> int:
    return sum(tensor.nbytes for tensor in held_by(model))


def wanted_part(
    name: str, whole: Tensor, parallel: ParallelConfig, rank: int, placement: Placement
) -> Tensor | None:
    """Return the part of a rank as torch cuts it; None: its stages do not have the parameter."""
    if name.endswith("correction_bias"):
        return whole
    if not placement.holds(rank // (parallel.size // parallel.pp), name):
        return None
    cut = cut_of(name, tuple(whole.shape), parallel, rank)
    part = whole if cut is None else cut.of(whole)
    # Routers and index heads are small, and may have to stay whole.
    if parallel.fsdp == 1 or name.endswith(("gate.weight", "weights_proj.weight")):
        return part
    axis = "efsdp" if ".experts." in name else "fsdp"
    ranks = next(ranks for ranks in rank_table(parallel, axis) if rank in ranks)
    chunks = [*part.chunk(len(ranks)), *[part[:0]] * len(ranks)]
    return chunks[ranks.index(rank)]


def check_parts(source: Source, whole: dict[str, Tensor], parallel: ParallelConfig) -> None:
    """Every rank has its part and no more, and all of them together have everything."""
    seen = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in whole.items()}
    placement = place_stages(TINY, parallel)
    for rank in range(parallel.size):
        model = build_part(TINY, source, parallel, rank)
        held = held_tensors(model)
        for name, tensor in whole.items():
            part = wanted_part(name, tensor, parallel, rank, placement)
            assert (name in held) == (part is not None), name
            assert part is None or torch.equal(held[name], part), name
            parameter = model.state_dict()[name]
            assert parameter.shape == tensor.shape
            if part is not None:
                box = model.state_dict(keep_vars=True)[name]
                place = box.box.of(seen[name]) if isinstance(box, HeldPart) else seen[name]
                place.fill_(True)
        assert torch.equal(model.speeds_R, Transformer.rotary_speeds(TINY))
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bool(places.all()) for places in seen.values())


def draw_whole(seed: int) -> Transformer:
    model = Transformer(TINY)
    initialise(model, TINY, torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize(
    "count", [1, 15, 16, 17, 31, 32, 1000, 4096, 2**20 - 1, 2**20, 2**20 + 17, 2**21 + 16]
)
def test_skipping_leaves_the_generator_as_drawing_does(count: int) -> None:
    drawn, skipped = (torch.Generator().manual_seed(3) for _ in range(2))
    torch.empty(count).normal_(0.0, 0.02, generator=drawn)
    skip_normal(count, skipped)
    assert torch.equal(drawn.get_state(), skipped.get_state())


@every_layout
def test_ranks_draw_the_weights_of_one_process(parallel: ParallelConfig) -> None:
    check_parts(InitialWeights(5), draw_whole(5).state_dict(), parallel)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of many files."""
    directory = tmp_path_factory.mktemp("released") / "checkpoint"
    model = draw_whole(7)
    for router in (m for m in model.modules() if hasattr(m, "e_score_correction_bias")):
        router.e_score_correction_bias.normal_()  # pyright: ignore[reportCallIssue]
    write_checkpoint(model, directory, max_shard_bytes=SHARD_BYTES)
    assert len(list(directory.glob("*.safetensors"))) > 10
    return directory


@every_layout
def test_ranks_read_the_weights_of_many_files(parallel: ParallelConfig, checkpoint: Path) -> None:
    check_parts(ReleasedWeights(checkpoint), read_checkpoint(checkpoint).state_dict(), parallel)


@every_layout
def test_a_rank_reads_what_it_holds_and_maps_one_file_beside_it(
    parallel: ParallelConfig, checkpoint: Path
) -> None:
    largest_file = max(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    source = ReleasedWeights(checkpoint)
    for rank in range(parallel.size):
        with Reader() as reader, Meter() as meter:
            part = build_part(TINY, source, parallel, rank)
        held = held_bytes(part)
        assert reader.read_bytes == held - part.speeds_R.nbytes
        assert held <= meter.peak_bytes(held_by(part)) <= held + largest_file


def is_drawn_beside(parameter: torch.nn.Parameter) -> bool:
    """Is it a matrix that is drawn whole, for a part?"""
    held = parameter.held if isinstance(parameter, HeldPart) else None
    return held is not None and held.ndim > 1 and held.numel() > 0


@every_layout
def test_a_rank_draws_with_one_tensor_beside_what_it_holds(parallel: ParallelConfig) -> None:
    whole = draw_whole(5).state_dict()
    for rank in range(parallel.size):
        with Meter() as meter:
            part = build_part(TINY, InitialWeights(5), parallel, rank)
        # Numbers are passed over in pieces of 4 MiB at most; here a parameter has fewer.
        largest = max(value.numel() + 16 for value in whole.values())
        assert held_bytes(part) <= meter.peak_bytes(held_by(part)) <= held_bytes(part) + 4 * largest
        drawn = [4 * p.numel() for p in part.parameters() if is_drawn_beside(p)]
        assert meter.peak_bytes(held_by(part)) >= held_bytes(part) + max(drawn, default=0)


def test_the_meters_see_a_whole_model(checkpoint: Path) -> None:
    held = held_bytes(build_part(TINY, InitialWeights(5), LAYOUTS["pp4"], 1))
    with Reader() as reader, Meter() as meter:
        whole = read_checkpoint(checkpoint)
    largest_file = max(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert reader.read_bytes == held_bytes(whole) - whole.speeds_R.nbytes
    assert meter.peak_bytes(held_by(whole)) >= held_bytes(whole) > held + largest_file


def test_files_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    wider = TINY.model_copy(update={"hidden_size": 128})
    with pytest.raises(MismatchError, match=r"`model.embed_tokens.weight` of shape \(99, 128\)"):
        build_part(wider, ReleasedWeights(checkpoint), ParallelConfig(), 0)
    cut = tmp_path / "cut"
    shutil.copytree(checkpoint, cut)
    (file,) = cut.glob("model-00002-of-*.safetensors")
    tensors = load_file(file)
    gone = min(tensors)
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(CorruptFileError, match=f"1 missing, first `{re.escape(gone)}`"):
        build_part(TINY, ReleasedWeights(cut), LAYOUTS["tp2"], 0)
    shallow = Transformer(TINY.model_copy(update={"num_hidden_layers": 2}))
    with pytest.raises(MismatchError, match="without one"):
        ReleasedWeights(checkpoint).fill(shallow)
    without = TINY.model_copy(update={"num_nextn_predict_layers": 0})
    model = Transformer(without)
    initialise(model, without, torch.Generator().manual_seed(1))
    model.config = TINY
    write_checkpoint(model, tmp_path / "no_mtp")
    source = ReleasedWeights(tmp_path / "no_mtp")
    assert source.config.num_nextn_predict_layers == 0


class Peaks(NamedTuple):
    """Most bytes of a rank at once."""

    held: int
    """What it holds all the time."""
    start: int
    """From nothing to a part that can be trained."""
    look: int
    """While the plain model is made whole on the first rank."""


def start_and_look(world: World, config: ParallelConfig) -> Peaks:
    mesh = Mesh(config, world)
    # Groups and what FSDP2 sets up once are no weights.
    mesh.group("dp", "fsdp", "cp", "tp")
    with Meter() as start:
        plain = build_model(TINY, InitialWeights(5), mesh, "cpu")
        split = SplitModel(plain, mesh)
        if config.fsdp > 1:
            shard_weights(split, torch.float32)
    held = [local_of(parameter.detach()) for parameter in split.model.parameters()]
    held += [*split.model.buffers(), *plain.buffers()]
    with Meter() as look:
        split.materialise()
    return Peaks(sum(map(nbytes_of, held)), start.peak_bytes(held), look.peak_bytes(held))


def nbytes_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["tp2", "ep2", "fsdp2"])
def test_a_rank_starts_with_its_part_and_the_first_alone_holds_the_whole(
    pair: Team, name: str
) -> None:
    config = ParallelConfig(fsdp=2) if name == "fsdp2" else LAYOUTS[name]
    whole = {n: 4 * value.numel() for n, value in draw_whole(5).named_parameters()}
    largest = max(whole.values())
    first, second = pair.run(start_and_look, config)
    # Along `fsdp` routers and index heads wait whole for the sharding, and FSDP2 copies an uneven
    # rank's rows to pad them: what was built counts beside what is held in the end.
    shapes = {n: value.shape for n, value in draw_whole(5).named_parameters()}
    copied = [n for n, shape in shapes.items() if is_sharded_late(n) or shape[0] % config.fsdp]
    built = sum(whole[n] for n in copied) if config.fsdp > 1 else 0
    for peaks in (first, second):
        assert peaks.held <= peaks.start <= peaks.held + largest + built + 4 * 16
    assert second.look <= second.held + largest
    # What a rank holds whole appears in the plain model as it is.
    assert first.held < first.look <= first.held + sum(whole.values()) + largest
    assert second.held + largest < sum(whole.values())
