"""What blocks save for their backward waits in host memory.

autograd hands every tensor that a block's forward saves to a pair of hooks. Storages that are worth
it are copied to the host when the forward has ended, leave the device when the copy has had its
time, and are back before the block's backward, which finds the same bits. When copies go is fixed
by the order of the rank's forwards and backwards (`plan.block_order`): the schedule's table with a
pipeline, the layers and back without one. Source: GLM-5 report, section 2.4.

What stays: weights, what the blocks of a forward share or hand on, small storages, and runs whose
backward comes too soon. A storage of which several tensors are saved travels once, even if several
blocks save them. Surprise: what a hand-written backward keeps on its `ctx` outside of
`save_for_backward` (the known gradients of an indexer's loss) is not seen here.
"""

import functools
import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.models.surroundings import Surroundings
from fivefold.models.transformer import Block, BlockOutput, Transformer
from fivefold.parallel.host_link import Link, make_link
from fivefold.parallel.offload_ledger import OffloadLedger
from fivefold.plan.block_order import (
    BlockEvent,
    backward_places,
    forward_places,
    one_pass,
    runs_that_leave,
)

Layers = bool | Sequence[int]
"""All layers of a model, none, or some by their index."""

LEAST_BYTES = 2**19
"""Smallest storage that travels: a link of 50 GB/s moves it in the 10 us that it takes to begin."""


_WIDEST = 4
"""Most block runs that a copy is given: more would keep too much on its way."""


class Offloader:
    """Moves what the blocks of some layers save, and counts what all of them do."""

    def __init__(
        self,
        moving: Collection[int],
        runs: int,
        device: torch.device,
        *,
        window: int = 1,
        least_bytes: int = LEAST_BYTES,
    ) -> None:
        """Move storages of at least `least_bytes` that the layers `moving` save.

        A pass through the model takes `runs` block runs (the MTP layer one a depth): the order
        until `follow` names another. A copy may take `window` events.
        """
        self.ledger = OffloadLedger()
        self.prepare: Callable[[Tensor, Surroundings], None] | None = None
        """Called before the first block of a pass or of a step in a pipeline; may call `move`."""
        self._least_bytes = least_bytes
        self._link, self._device = make_link(device), device
        self._here: weakref.WeakValueDictionary[int, _Stored] = weakref.WeakValueDictionary()
        self._runs: list[_Run] = []
        self._backward: _Run | None = None
        self._has_table = False
        self._events: Sequence[BlockEvent] = one_pass(runs)
        self.move(moving, window)

    def move(self, layers: Collection[int], window: int) -> None:
        """Move other layers from the next pass on."""
        self.moving, self.window = layers, window
        self._forward, self._back = forward_places(self._events), backward_places(self._events)
        self._leaving = runs_that_leave(self._events, window)
        self._fetched = self._released = 0

    def follow(self, events: Sequence[BlockEvent]) -> None:
        """Begin a step whose blocks run in this order."""
        self._has_table, self._events, self._runs = True, events, []
        self.move(self.moving, self.window)

    def run(
        self, block: Block, layer: int, x_BTD: Tensor, around: Surroundings, *others: Any
    ) -> BlockOutput:
        """Run a block's forward, and see to what it saves."""
        if not torch.is_grad_enabled():
            return Block.forward(block, x_BTD, around, *others)
        if layer == 0 and not self._has_table:
            self._runs, self._fetched, self._released = [], 0, 0
        if not self._runs and self.prepare is not None:
            self.prepare(x_BTD, around)
        run = _Run(len(self._runs), layer)
        self._runs.append(run)
        place = self._forward.get(run.number)
        self._reach(place, run)
        outside = [*block.parameters(), *block.buffers(), *vars(around).values()]
        # A leaf is a pipeline's state: it is held until the backward, for its gradient.
        outside += [x_BTD] if x_BTD.is_leaf else []
        pack = functools.partial(self._pack, run, _addresses(outside))
        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpack):
            output = Block.forward(block, x_BTD, around, *others)
        if run.number in self._leaving and layer in self.moving:
            self._send(run, output)
        if place is not None:
            self._release(place + 1)
        return output

    def _pack(self, run: "_Run", outside: set[int], tensor: Tensor) -> "Tensor | _Saved":
        """Put a tensor's storage in the account of the run that saves it."""
        address = _address(tensor)
        is_plain = tensor.layout == torch.strided and not (tensor.is_conj() or tensor.is_neg())
        if address in outside or tensor.device != self._device or not is_plain:
            return tensor
        stored = self._here.get(address)
        if stored is None:
            stored = self._here[address] = _Stored(tensor, run.layer, self._link, self.ledger)
        stored.last_run = run
        run.stored.append(weakref.ref(stored))
        place = tensor.shape, tensor.stride(), int(tensor.storage_offset())
        return _Saved(stored, run, tensor.dtype, *place)

    def _unpack(self, saved: "Tensor | _Saved") -> Tensor:
        """Give autograd its tensor; the first of a run says that its backward begins."""
        if isinstance(saved, Tensor):
            return saved
        if saved.run is not self._backward:
            self._backward = saved.run
            if saved.run in self._runs:
                self._reach(self._back.get(saved.run.number), saved.run)
        storage = saved.stored.arrived().untyped_storage()
        empty = torch.empty(0, dtype=saved.dtype, device=self._device)
        return empty.set_(storage, saved.offset, saved.shape, saved.stride)

    def _send(self, run: "_Run", output: BlockOutput) -> None:
        """Begin to copy what the run saved and does not hand on."""
        handed_on = _addresses(
            [output.x_BTD, *(output.routing or ()), *(output.index_loss or ())[:1]]
        )
        for stored in run.alive():
            if stored.size >= self._least_bytes and _address(stored.here) not in handed_on:
                stored.start_out()

    def _reach(self, place: int | None, current: "_Run") -> None:
        """Begin the event at `place`: let go of what has had its time, send for what comes next."""
        if place is None:
            return
        self._release(place)
        end = place + self.window + 1
        while self._fetched < min(end, len(self._events)):
            event = self._events[self._fetched]
            if not event.is_forward and event.run < len(self._runs):
                # The backward of a run that saved nothing is not seen, and begins no event.
                end += not self._runs[event.run].stored
                for stored in self._alive(event.run) if event.run != current.number else ():
                    stored.start_in()
            self._fetched += 1

    def _release(self, place: int) -> None:
        """Let go of what had until the event before `place` to leave, unless it is about to return.

        It may be where a pass ends before its order does.
        """
        end = max(place - self.window, 0)
        for event in self._events[self._released : end]:
            if event.is_forward and self._back[event.run] > place + self.window:
                for stored in self._alive(event.run):
                    if stored.is_sent:
                        self._here.pop(_address(stored.here), None)
                        stored.leave()
        self._released = max(self._released, end)

    def _alive(self, number: int) -> "list[_Stored]":
        return self._runs[number].alive() if number < len(self._runs) else []


class _Run:
    """One forward of one block."""

    def __init__(self, number: int, layer: int) -> None:
        self.number, self.layer = number, layer
        self.stored: list[weakref.ref[_Stored]] = []

    def alive(self) -> "list[_Stored]":
        """Return the storages that this run was the last to save and that autograd still wants."""
        found = [reference() for reference in self.stored]
        return [each for each in found if each is not None and each.last_run is self]


class _Stored:
    """One storage: on the device, on the host, or between them."""

    def __init__(self, tensor: Tensor, layer: int, link: Link, ledger: OffloadLedger) -> None:
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        self._device: Tensor | None = whole.set_(tensor.untyped_storage())
        self._host: Tensor | None = None
        self._left: Any = None
        self._arrival: Any = None
        self._is_arriving = False
        self.last_run: _Run | None = None
        self.size = whole.nbytes
        self._link, self._ledger, self._layer = link, ledger, ledger.layer(layer)
        ledger.hold(_address(whole), self.size)

    @property
    def here(self) -> Tensor:
        """All bytes, on the device."""
        assert self._device is not None, "the storage is away"
        return self._device

    @property
    def is_sent(self) -> bool:
        """Is it on the device with a copy on the host, or one under way?"""
        return self._device is not None and self._host is not None

    def start_out(self) -> None:
        """Begin the copy to the host, unless an earlier run did."""
        if self._host is None:
            self._host, self._left = self._link.start_out(self.here)
            self._layer.out_bytes += self.size
            self._ledger.host_bytes += self.size

    def leave(self) -> None:
        """Give up the device's memory; whoever gets it waits for the copy."""
        self._link.wait(self._left)
        self._ledger.drop(_address(self.here), self.size)
        self._device = None

    def start_in(self) -> None:
        """Begin the copy to the device, unless it is there."""
        if self._device is None:
            assert self._host is not None, "what is away is on the host"
            self._device, self._arrival = self._link.start_in(self._host, self._left)
            self._host, self._is_arriving = None, True
            self._layer.in_bytes += self.size
            self._ledger.host_bytes -= self.size
            self._ledger.hold(_address(self._device), self.size)

    def arrived(self) -> Tensor:
        """Return all bytes on the device, for what is computed from here on."""
        if self._device is None:
            self._ledger.late += 1
            self.start_in()
        self._settle()
        return self.here

    def _settle(self) -> None:
        if self._is_arriving:
            self._link.wait(self._arrival)
            self._is_arriving = False

    def __del__(self) -> None:
        """Count out what autograd lets go of; a copy that still writes to it is waited for."""
        self._settle()
        if self._device is not None:
            self._ledger.drop(_address(self._device), self.size)
        if self._host is not None:
            self._ledger.host_bytes -= self.size


@dataclass(frozen=True)
class _Saved:
    """A tensor as autograd keeps it: a view of a storage, and the run that saved it."""

    stored: _Stored
    run: _Run
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def offload_blocks(model: Transformer, offloader: Offloader) -> None:
    """Let every block of the model run through `offloader`."""
    for layer, block in blocks_by_layer(model).items():
        vars(block)["forward"] = functools.partial(offloader.run, block, layer)


def keep_blocks(model: Transformer) -> None:
    """Undo `offload_blocks`."""
    for block in blocks_by_layer(model).values():
        vars(block).pop("forward", None)


def blocks_by_layer(model: Transformer) -> dict[int, Block]:
    """Return the blocks by the index of their layer; the MTP layer's is the one after the last."""
    found = [*model.layers, *([] if model.mtp is None else [model.mtp.block])]
    blocks = {layer: block for layer, block in enumerate(found) if isinstance(block, Block)}
    assert len(blocks) == len(found), "a layer is a block"
    return blocks


def named_layers(layers: Layers, blocks: Collection[int]) -> set[int]:
    """Return all, none, or the named ones of the model's layers.

    Raises:
        ConfigError: one of them does not exist.
    """
    if isinstance(layers, bool):
        return set(blocks) if layers else set()
    strangers = set(layers) - set(blocks)
    if strangers:
        raise ConfigError(
            expected=f"layers from 0 to {max(blocks)}, the MTP layer being the last",
            found=", ".join(map(str, sorted(strangers))),
            fix="Correct `recompute` or `offload`",
        )
    return set(layers)


def widest_window(moving: Collection[int], runs: Mapping[int, int]) -> int:
    """Return how many block runs a copy of the layers `moving` may take at most.

    So many that the next of them has the link to itself, in the microbatch that follows too, and
    that each is still away for some time. `runs` says how often a pass runs each layer.
    """
    begins = dict(zip(runs, itertools.accumulate(runs.values(), initial=0), strict=False))
    total, places = sum(runs.values()), sorted(begins[layer] for layer in moving)
    if not places or any(runs[layer] > 1 for layer in moving):
        return 1
    apart = [after - before for before, after in itertools.pairwise([*places, places[0] + total])]
    behind = [total - 1 - place for place in places]
    away = [count - 1 for count in behind if count > 1]
    return max(min([*apart, *away, _WIDEST]), 1)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _addresses(things: Iterable[Any]) -> set[int]:
    """Return where the storages of the tensors among `things` begin."""
    return {_address(thing) for thing in things if isinstance(thing, Tensor)}
