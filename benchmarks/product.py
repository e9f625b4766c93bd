"""fp32 products with weights: `ops.product` (oneDNN) against torch's own `F.linear` and `mm` (MKL).

Forward, and both gradients, of one projection. Options: `--rows`, `--inputs`, `--outputs`;
`--packed` measures instead a decode step's product with a weight laid out beforehand.
"""

import argparse
from collections.abc import Callable

import torch
from harness import add_options, compare
from torch import Tensor
from torch.nn import functional as F

from fivefold.ops.product import Packed, linear

CALLS = 50
"""Calls of one timing."""


def main() -> None:
    """Measure GFLOP a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--outputs", type=int, default=1024)
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, options.inputs, generator=generator)
    weight = torch.randn(options.outputs, options.inputs, generator=generator)
    grad = torch.randn(options.rows, options.outputs, generator=generator)
    packed = Packed(weight)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, weight)]

    def train(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(CALLS):
            torch.autograd.grad(multiply(*leaves), leaves, grad)

    def infer(multiply: Callable[[Tensor], Tensor]) -> None:
        for _ in range(CALLS):
            multiply(x)

    def ours() -> None:
        infer(packed.linear) if options.packed else train(linear)

    def peer() -> None:
        infer(lambda x: F.linear(x, weight)) if options.packed else train(F.linear)

    products = 1 if options.packed else 3
    kind = "packed" if options.packed else "train"
    compare(
        f"product_{kind}_{options.rows}x{options.inputs}x{options.outputs}",
        ours,
        peer,
        work=2e-9 * CALLS * products * options.rows * options.inputs * options.outputs,
        unit="GFLOP/s",
        options=options,
        detail={},
    )


if __name__ == "__main__":
    main()
