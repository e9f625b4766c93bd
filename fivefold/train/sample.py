"""Continuations of fixed prompts along training, for the report."""

from collections.abc import Callable

import torch

from fivefold.models.generate import Sampling, generate
from fivefold.models.transformer import Transformer
from fivefold.text.tokenizer import Tokenizer
from fivefold.train.config import GradientConfig

SAMPLING = Sampling(temperature=0.8, top_p=0.9)


def make_sampler(
    model: Transformer, tokenizer: Tokenizer, config: GradientConfig, seed: int
) -> Callable[[int, float], list[dict[str, str]]]:
    """Return the function that continues the configured prompts, always with the same draws."""

    def sample(step: int, bits_per_byte: float) -> list[dict[str, str]]:
        samples = []
        for prompt in config.sample_prompts:
            ids = torch.tensor([tokenizer.prompt_ids(prompt)], device=model.lm_head.weight.device)
            generator = torch.Generator(ids.device).manual_seed(seed)
            new = generate(
                model, ids, config.sample_tokens, SAMPLING, generator, tokenizer.stop_ids
            )
            label = f"step {step}, {bits_per_byte:.2f} bits/byte"
            text = tokenizer.decode(new[0], skip_special=True)
            samples.append({"label": label, "prompt": prompt, "text": text})
        return samples

    return sample
