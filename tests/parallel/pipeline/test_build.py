"""Stages built without the whole model: the weights of one process, and never more bytes."""

import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import TINY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fivefold.errors import CorruptFileError, MismatchError
from fivefold.models.convert import read_checkpoint, write_checkpoint
from fivefold.models.initialise import initialise
from fivefold.models.transformer import Transformer
from fivefold.parallel.config import ParallelConfig
from fivefold.parallel.pipeline.build import (
    InitialWeights,
    ReleasedWeights,
    build_part,
    skip_normal,
)
from fivefold.parallel.pipeline.placement import place_stages

SHARD_BYTES = 60_000
LAYOUTS = [
    ParallelConfig(pp=2, mtp_stage="before_last"),
    ParallelConfig(pp=4, pieces=(2, 2, 1, 1)),
    ParallelConfig(pp=2, schedule="zb_v"),
]


class Meter(TorchDispatchMode):
    """Notes at every operation which storages live tensors hold, by address."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, weakref.ref[Tensor]] = {}
        self.seen: list[dict[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                self._alive[id(leaf)] = weakref.ref(leaf)
        held = {key: tensor for key, ref in self._alive.items() if (tensor := ref()) is not None}
        self._alive = {key: self._alive[key] for key in held}
        storages = [tensor.untyped_storage() for tensor in held.values()]
        self.seen.append({storage.data_ptr(): storage.nbytes() for storage in storages})
        return out

    def peak_bytes(self, model: Transformer) -> int:
        """Return the model's bytes, and the most that stood beside them at any time."""
        own = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in model.state_dict().values()
            if not tensor.is_meta
        }
        beside = max(sum(n for ptr, n in one.items() if ptr not in own) for one in self.seen)
        return sum(own.values()) + beside


def weight_bytes(model: Transformer) -> int:
    """Return the bytes of the weights and biases that exist."""
    return sum(t.nbytes for t in model.state_dict().values() if not t.is_meta)


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


@pytest.mark.parametrize("parallel", LAYOUTS, ids=["pp2", "pp4", "zb_v"])
def test_ranks_draw_the_weights_of_one_process(parallel: ParallelConfig) -> None:
    whole = draw_whole(5).state_dict()
    placement = place_stages(TINY, parallel)
    seen = set()
    for rank in range(parallel.pp):
        part = build_part(TINY, InitialWeights(5), lambda name, r=rank: placement.holds(r, name))
        existing = {n: t for n, t in part.state_dict().items() if not t.is_meta}
        assert all(torch.equal(tensor, whole[name]) for name, tensor in existing.items())
        assert torch.equal(part.speeds_R, Transformer.rotary_speeds(TINY))
        named = dict(part.named_parameters())
        assert {n for n, p in named.items() if not p.is_meta} == {
            name for name in named if placement.holds(rank, name)
        }
        assert all(parameter.shape == whole[name].shape for name, parameter in named.items())
        seen |= existing.keys()
    assert seen == whole.keys()


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


@pytest.mark.parametrize("parallel", LAYOUTS, ids=["pp2", "pp4", "zb_v"])
def test_ranks_read_their_part_and_hold_one_shard_beside_it(
    parallel: ParallelConfig, checkpoint: Path
) -> None:
    whole = read_checkpoint(checkpoint)
    shard = max(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    source = ReleasedWeights(checkpoint)
    placement = place_stages(source.config, parallel)
    for rank in range(parallel.pp):
        with Meter() as meter:
            part = build_part(source.config, source, lambda n, r=rank: placement.holds(r, n))
        for name, tensor in part.state_dict().items():
            assert tensor.is_meta or torch.equal(tensor, whole.state_dict()[name])
        held = weight_bytes(part)
        wanted = {n: t for n, t in whole.state_dict().items() if placement.holds(rank, n)}
        biases = {n: t for n, t in whole.state_dict().items() if n.endswith("correction_bias")}
        assert held == sum(tensor.nbytes for tensor in (wanted | biases).values())
        assert held <= meter.peak_bytes(part) <= held + shard


def test_drawn_weights_need_no_bytes_beside_a_few_numbers() -> None:
    placement = place_stages(TINY, LAYOUTS[1])
    with Meter() as meter:
        part = build_part(TINY, InitialWeights(5), lambda name: placement.holds(1, name))
    largest = max(p.numel() for p in part.parameters())
    # Numbers are passed over in pieces of 4 MiB at most; here a parameter has fewer.
    assert meter.peak_bytes(part) <= weight_bytes(part) + 4 * (largest + 16)


def test_the_meter_sees_a_whole_model(checkpoint: Path) -> None:
    placement = place_stages(TINY, LAYOUTS[1])
    held = weight_bytes(build_part(TINY, InitialWeights(5), lambda n: placement.holds(1, n)))
    with Meter() as meter:
        whole = read_checkpoint(checkpoint)
    shard = max(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert meter.peak_bytes(whole) >= weight_bytes(whole) > held + shard


def test_files_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    wider = TINY.model_copy(update={"hidden_size": 128})
    with pytest.raises(MismatchError, match=r"`model.norm.weight` of shape \(128,\)"):
        build_part(wider, ReleasedWeights(checkpoint), lambda name: name == "norm.weight")
    cut = tmp_path / "cut"
    shutil.copytree(checkpoint, cut)
    (file,) = cut.glob("model-00002-of-*.safetensors")
    tensors = load_file(file)
    gone = min(tensors)
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(CorruptFileError, match=f"1 missing, first `{re.escape(gone)}`"):
        build_part(TINY, ReleasedWeights(cut), lambda name: False)
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
