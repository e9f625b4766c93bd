"""Accelerators on paper: peaks, memories and links, and how much of them is assumed to be reached.

Peaks are dense bf16 rates and one-directional bandwidths a GPU, from the vendor's data sheets
(SXM modules in eight-GPU servers, one network port a GPU; to the host 16 lanes of PCIe, generation
4 for the A100, else 5). Efficiencies are assumptions, the same
for every model and layout, and are printed with every result: measure your own and override them.
"""

import pydantic

from fivefold.config import Config
from fivefold.errors import ConfigError

_GIB = 1024**3


class Hardware(Config):
    """One kind of GPU in one kind of cluster."""

    name: str
    """Name on the command line."""

    peak_flops: float = pydantic.Field(gt=0)
    """Dense bf16 FLOPs a second."""

    memory_bytes: float = pydantic.Field(gt=0)
    """Bytes of device memory."""

    gpus_per_node: int = pydantic.Field(default=8, gt=0)
    """GPUs that share the fast link."""

    node_bandwidth: float = pydantic.Field(gt=0)
    """Bytes a second from one GPU to others of its node."""

    network_bandwidth: float = pydantic.Field(gt=0)
    """Bytes a second from one GPU to other nodes."""

    host_bandwidth: float = pydantic.Field(gt=0)
    """Bytes a second between one GPU and its host, each way."""

    host_bytes: float = pydantic.Field(default=2e12 / 8, gt=0)
    """Bytes of host memory a GPU: DGX servers have 2 TB for eight."""

    reserved_bytes: float = pydantic.Field(default=6 * _GIB, ge=0)
    """Bytes that no tensor gets: driver, communicators, fragmentation."""

    matmul_efficiency: float = pydantic.Field(default=0.65, gt=0, le=1)
    """Share of the peak that large matrix products reach."""

    expert_efficiency: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the peak that grouped expert products reach."""

    attention_efficiency: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the peak that attention over keys (and the indexer) reaches."""

    half_rate_rows: float = pydantic.Field(default=128, ge=0)
    """Rows (or columns) at which a matrix product reaches half its best rate."""

    link_efficiency: float = pydantic.Field(default=0.75, gt=0, le=1)
    """Share of a link's bandwidth that collectives reach."""

    hidden_dispatch: float = pydantic.Field(default=0.6, ge=0, le=1)
    """Share of the expert exchange that runs behind compute."""

    hidden_reduction: float = pydantic.Field(default=0.8, ge=0, le=1)
    """Share of gradient and weight collectives that runs behind compute."""

    def matmul_rate(self, rows: float) -> float:
        """Return the FLOPs a second of a matrix product whose shorter side has `rows`."""
        return self.peak_flops * self.matmul_efficiency * rows / (rows + self.half_rate_rows)

    def expert_rate(self, rows: float) -> float:
        """Return the FLOPs a second of grouped experts that get `rows` tokens each."""
        return self.peak_flops * self.expert_efficiency * rows / (rows + self.half_rate_rows)

    @property
    def attention_rate(self) -> float:
        """FLOPs a second of attention over keys and of indexer scores."""
        return self.peak_flops * self.attention_efficiency


_TABLE = (
    Hardware(
        name="a100",
        peak_flops=312e12,
        memory_bytes=80 * _GIB,
        node_bandwidth=300e9,
        network_bandwidth=25e9,
        host_bandwidth=31.5e9,
    ),
    Hardware(
        name="h800",
        peak_flops=989e12,
        memory_bytes=80 * _GIB,
        node_bandwidth=200e9,
        network_bandwidth=50e9,
        host_bandwidth=63e9,
    ),
    Hardware(
        name="h100",
        peak_flops=989e12,
        memory_bytes=80 * _GIB,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        host_bandwidth=63e9,
    ),
    Hardware(
        name="h200",
        peak_flops=989e12,
        memory_bytes=141e9,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        host_bandwidth=63e9,
    ),
    Hardware(
        name="b200",
        peak_flops=2250e12,
        memory_bytes=180e9,
        node_bandwidth=900e9,
        network_bandwidth=50e9,
        host_bandwidth=63e9,
    ),
)
HARDWARE: dict[str, Hardware] = {hardware.name: hardware for hardware in _TABLE}


def find_hardware(name: str) -> Hardware:
    """Return the named hardware.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in HARDWARE:
        raise ConfigError(
            expected="the name of a kind of GPU",
            found=repr(name),
            fix=f"Choose one of {', '.join(HARDWARE)}",
        )
    return HARDWARE[name]
