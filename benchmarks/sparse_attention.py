"""One layer's attention at the `mini` shape, forward and backward: gathered keys against a mask.

Both forms are one function; the ratio says from which length on gathering pays. Prints, a length,
milliseconds of each form and the cost of a gathered key over a masked one, the constant of
`fivefold/ops/attention_cost.py`. Last line: JSON at the longest length, where `peer` is our own
masked form. Options: `--heads`, `--topk`, `--lengths`.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from harness import add_options, compare, pair_count, time_call

from fivefold.models.preset import preset
from fivefold.ops.attention import attend_expanded
from fivefold.ops.sparse_attention import attend_gathered


def main() -> None:
    """Measure queries a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--topk", type=int, default=128)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    for length in options.lengths:
        calls = make_calls(length, options.topk, generator)
        for call in calls:
            call()
        gathered_seconds, masked_seconds = (
            statistics.median(time_call(call).wall_seconds for _ in range(pair_count(options)))
            for call in calls
        )
        keys = min(options.topk, length / 2)
        cost = gathered_seconds / keys / (masked_seconds / (length / 2))
        print(
            f"{length:>6} tokens: gathered {gathered_seconds * 1e3:8.1f} ms, "
            f"masked {masked_seconds * 1e3:8.1f} ms, a gathered key costs {cost:.1f} masked ones"
        )
    longest = max(options.lengths)
    gathered, masked = make_calls(longest, options.topk, generator)
    compare(
        f"sparse_attention_{longest}",
        gathered,
        masked,
        work=longest,
        unit="queries/s",
        options=options,
        detail={"topk": options.topk},
    )


def make_calls(
    length: int, topk: int, generator: torch.Generator
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return forward and backward of one layer of `length` tokens, gathered and masked."""
    config = preset("mini")
    heads, latent = config.num_attention_heads, config.kv_lora_rank or 0
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    shapes = [
        (1, length, heads, nope),
        (1, length, heads, rope),
        (1, length, latent),
        (1, length, rope),
        (heads, nope + config.v_head_dim, latent),
    ]
    q_nope, q_rope, latents, ropes, kv_b = (
        torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes
    )
    places, visible = random_selection(length, topk, generator)
    scale = config.qk_head_dim**-0.5

    def gathered() -> None:
        attend_gathered(q_nope, q_rope, latents, ropes, kv_b, places, scale).sum().backward()

    def masked() -> None:
        attend_expanded(q_nope, q_rope, latents, ropes, kv_b, visible, scale).sum().backward()

    return gathered, masked


def random_selection(
    length: int, topk: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let each query keep itself and random earlier keys; returns places and mask."""
    scores = torch.rand(length, length, generator=generator)
    scores.fill_diagonal_(2.0)
    scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -1.0)
    chosen = scores.topk(min(topk, length)).indices.sort(-1).values
    is_later = chosen > torch.arange(length)[:, None]
    places = chosen.masked_fill(is_later, length).sort(-1).values
    places = places.masked_fill(places == length, -1)
    visible = torch.zeros(length, length + 1, dtype=torch.bool)
    visible.scatter_(1, places.where(places >= 0, length), True)
    return places[None].int(), visible[None, :, :length]


if __name__ == "__main__":
    main()
