"""What blocks saved for their backward, in bytes: on the device, on the host, and on the way."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LayerBytes:
    """Bytes of one layer that travelled since the start."""

    out_bytes: int = 0
    in_bytes: int = 0


@dataclass
class OffloadLedger:
    """What the hooks of all blocks saw; each storage counts once, however many hold it.

    With weight gradients that are put off, also what waits for them: inputs, which stay beyond the
    backward of their block, and incoming gradients. Left out are weights, what comes from outside
    of the blocks, and what a recomputed block saves in its second forward and nothing puts off.
    """

    layers: dict[int, LayerBytes] = field(default_factory=dict)
    """By layer; the MTP layer is the one after the last."""
    held_bytes: int = 0
    """On the device now."""
    peak_bytes: int = 0
    """Most on the device at once."""
    host_bytes: int = 0
    """On the host now."""
    late: int = 0
    """Storages that nothing had sent for when their backward came."""
    _holders: Counter[int] = field(default_factory=Counter, repr=False)
    """How many hold the storage on the device that begins at an address."""

    @property
    def out_bytes(self) -> int:
        """Bytes that went to the host, all layers."""
        return sum(layer.out_bytes for layer in self.layers.values())

    @property
    def in_bytes(self) -> int:
        """Bytes that came back, all layers."""
        return sum(layer.in_bytes for layer in self.layers.values())

    def layer(self, layer: int) -> LayerBytes:
        """Return one layer's account."""
        return self.layers.setdefault(layer, LayerBytes())

    def hold(self, address: int, size: int) -> None:
        """Count a storage on the device that one more holds from now on."""
        self._holders[address] += 1
        if self._holders[address] == 1:
            self.held_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def drop(self, address: int, size: int) -> None:
        """Count it out when its last holder lets go of it; called before it is freed."""
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self.held_bytes -= size

    def check_idle(self) -> None:
        """Assert that nothing is held between steps."""
        assert self.held_bytes == 0, f"{self.held_bytes} bytes of activations held by nothing"
        assert self.host_bytes == 0, f"{self.host_bytes} bytes on the host belong to nothing"
