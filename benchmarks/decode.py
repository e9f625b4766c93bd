"""Greedy decode of the `mini` shape in fp32: ours against `transformers.generate`, same weights.

Options: `--batch`, `--prompt` (tokens of context before the first new one), `--new`.
"""

import argparse

import torch
from harness import add_options, compare
from peer import build_pair

from fivefold.models.generate import Sampling, stream
from fivefold.models.preset import preset


def main() -> None:
    """Measure new tokens a second, over all rows, prefill included."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    config = preset("mini", num_nextn_predict_layers=0)
    ours, peers = build_pair(config, torch.float32, (torch.float32,))
    peer = peers[torch.float32].eval()
    shape = (options.batch, options.prompt)
    prompt = torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt)

    def our_decode() -> list[torch.Tensor]:
        return list(stream(ours, prompt, options.new, Sampling(temperature=0)))

    def peer_decode() -> torch.Tensor:
        return peer.generate(
            prompt, attention_mask=mask, max_new_tokens=options.new, min_new_tokens=options.new,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    compare(
        f"decode_batch{options.batch}_context{options.prompt}",
        our_decode,
        peer_decode,
        work=options.batch * options.new,
        unit="tokens/s",
        options=options,
        detail={},
    )


if __name__ == "__main__":
    main()
