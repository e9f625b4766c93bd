"""A recorder of the products that go to oneDNN."""

import pytest
from torch import Tensor

from fivefold.ops import product


def count_onednn_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list to which every product by oneDNN adds its rows and its columns.

    Large products go there from now on, on a processor where MKL is faster too.
    """
    calls: list[tuple[int, int]] = []
    multiply = product._multiply

    def count(x: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
        calls.append((len(x), len(weight_YX)))
        return multiply(x, weight_YX, bias_Y)

    monkeypatch.setattr(product, "_multiply", count)
    monkeypatch.setattr(product, "_BEATS_MKL", product._HAS_ONEDNN)
    return calls
