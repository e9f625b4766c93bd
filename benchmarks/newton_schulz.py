"""Newton-Schulz in the precision that `ns_dtype: auto` chooses, against the other one.

The matrices are the `nano` shape's, batched by shape as a step of Muon batches them. Above 1, the
choice is the faster: bf16 on a processor with instructions for it, fp32 on any other.
"""

import argparse

import torch
from harness import add_options, compare

from fivefold.models.initialise import initialise
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.bf16 import multiplies_bf16
from fivefold.train.muon import Muon, matrix_splits
from fivefold.train.optimizer_config import OptimizerConfig


def main() -> None:
    """Measure optimizer steps a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    has_bf16 = multiplies_bf16(torch.device("cpu"))
    chosen, other = ("bfloat16", "float32") if has_bf16 else ("float32", "bfloat16")
    ours, peer = build_muon("auto"), build_muon(other)
    compare(
        "newton_schulz",
        lambda: ours.step(1e-3),
        lambda: peer.step(1e-3),
        work=1,
        unit="steps/s",
        options=options,
        detail={"chosen": chosen, "other": other},
    )


def build_muon(dtype: str) -> Muon:
    """Return the optimizer of a `nano` model with random gradients."""
    config = preset("nano")
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    initialise(model, config, generator)
    parameters = dict(model.named_parameters())
    policy = OptimizerConfig.model_validate({"ns_dtype": dtype})
    splits = matrix_splits(config, {name: p.shape for name, p in parameters.items()}, policy)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return Muon({name: p for name, p in parameters.items() if splits[name]}, splits, policy)


if __name__ == "__main__":
    main()
