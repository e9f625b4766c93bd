"""What the GPU tests share: tiny models of other rooms, and kernels whose sums have one order."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for _room in ("parallel", "rl", "serve"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / _room))
# cuBLAS reads it once; without it torch refuses products that are to be repeatable.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def one_order() -> Iterator[None]:
    """Let every kernel add up in one order, so that equal numbers have equal bits.

    Memory that nothing has written holds NaN meanwhile: whoever reads it shows.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
