"""Copies between a device and its host, beside what the device computes.

On a GPU each direction has a stream of its own and the host's memory is pinned, by torch's caching
allocator. A copy waits by event for what the compute stream had been given before it, the compute
stream by event for the copy; the processor waits for neither. Memory is allocated and freed on the
compute stream alone, which keeps torch's allocator right: it hands memory on in that stream's
order. One H200 moved 55 GB/s each way (`benchmarks/offload_gpu.py`). On a CPU the host is another
buffer and a copy is over at once.
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class Link(Protocol):
    """One device's way to the host; events are the link's own affair."""

    def start_out(self, device_bytes: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy to the host; returns the copy and the event of its completion."""
        ...

    def start_in(self, host_bytes: Tensor, left: Any) -> tuple[Tensor, Any]:
        """Begin to copy back, after the event `left`; returns the copy and its event."""
        ...

    def wait(self, event: Any) -> None:
        """Let what is computed from here on wait for the event."""
        ...


class BufferLink:
    """A CPU's: another buffer stands for the host."""

    def start_out(self, device_bytes: Tensor) -> tuple[Tensor, None]:
        """Copy."""
        return device_bytes.clone(), None

    def start_in(self, host_bytes: Tensor, left: None) -> tuple[Tensor, None]:
        """Copy."""
        return host_bytes.clone(), None

    def wait(self, event: None) -> None:
        """Do nothing: the copy is over."""


class StreamLink:
    """A GPU's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._in = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def start_out(self, device_bytes: Tensor) -> tuple[Tensor, Any]:
        """Queue the copy behind what computes the bytes."""
        host_bytes = torch.empty(device_bytes.shape, dtype=device_bytes.dtype, pin_memory=True)
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            host_bytes.copy_(device_bytes, non_blocking=True)
        return host_bytes, self._out.record_event()

    def start_in(self, host_bytes: Tensor, left: torch.cuda.Event) -> tuple[Tensor, Any]:
        """Queue the copy behind the way out and behind the last user of the memory it gets."""
        device_bytes = torch.empty(host_bytes.shape, dtype=host_bytes.dtype, device=self._device)
        self._in.wait_event(left)
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._in):
            device_bytes.copy_(host_bytes, non_blocking=True)
        return device_bytes, self._in.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        """Make the compute stream wait."""
        torch.cuda.current_stream(self._device).wait_event(event)


def make_link(device: torch.device) -> Link:
    """Return the link of a device."""
    return StreamLink(device) if device.type == "cuda" else BufferLink()
