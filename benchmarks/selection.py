"""The selection rule's ranking on a CPU: `largest` against `torch.topk`, same scores, same values.

The default is a block of the 1 x 4,096 step of `mini`. Options: `--rows`, `--keys`, `--topk`.
"""

import argparse

import torch
from harness import add_options, compare

from fivefold.ops.select_topk import largest

CALLS = 50
"""Calls of one timing."""


def main() -> None:
    """Measure rows a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--keys", type=int, default=4096)
    parser.add_argument("--topk", type=int, default=129)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(options.rows, options.keys, generator=generator)

    def ours() -> None:
        for _ in range(CALLS):
            largest(scores, options.topk)

    def peer() -> None:
        for _ in range(CALLS):
            torch.topk(scores, options.topk, dim=-1, sorted=False)

    compare(
        f"selection_{options.rows}x{options.keys}_{options.topk}",
        ours,
        peer,
        work=CALLS * options.rows,
        unit="rows/s",
        options=options,
        detail={},
    )


if __name__ == "__main__":
    main()
