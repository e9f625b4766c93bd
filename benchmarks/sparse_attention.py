"""One layer's attention at the `mini` shape, forward and backward: gathered keys against a mask.

Both forms are one function; the ratio says from which length on gathering pays. Prints, a length,
milliseconds of each form and the cost of a gathered key over a masked one, the constant of
`fivefold/ops/attention_cost.py`. Last line: JSON at the longest length, where `peer` is our own
masked form. Options: `--heads`, `--topk`, `--lengths`.
"""

import argparse
import statistics

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

    config = preset("mini")
    heads, latent = config.num_attention_heads, config.kv_lora_rank or 0
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    calls = {}
    for length in options.lengths:
        parts = (
            random(1, length, heads, nope),
            random(1, length, heads, rope),
            random(1, length, latent),
            random(1, length, rope),
            random(heads, nope + config.v_head_dim, latent),
        )
        places, visible = random_selection(length, options.topk, generator)
        scale = config.qk_head_dim**-0.5

        def gathered(parts=parts, places=places, scale=scale) -> None:
            attend_gathered(*parts, places, scale).sum().backward()

        def masked(parts=parts, visible=visible, scale=scale) -> None:
            attend_expanded(*parts, visible, scale).sum().backward()

        calls[length] = gathered, masked
        for call in calls[length]:
            call()
        times = [
            statistics.median(time_call(call).wall_seconds for _ in range(pair_count(options)))
            for call in calls[length]
        ]
        keys = min(options.topk, length / 2)
        cost = times[0] / keys / (times[1] / (length / 2))
        print(
            f"{length:>6} tokens: gathered {times[0] * 1e3:8.1f} ms, "
            f"masked {times[1] * 1e3:8.1f} ms, a gathered key costs {cost:.1f} masked ones"
        )
    longest = max(options.lengths)
    gathered, masked = calls[longest]
    compare(
        f"sparse_attention_{longest}",
        gathered,
        masked,
        work=longest,
        unit="queries/s",
        options=options,
        detail={"topk": options.topk},
    )


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
