"""Our losses against the code of TRL's trainers, run on random tensors without a model.

TRL's `GRPOTrainer._compute_loss` needs of its trainer little more than settings: a plain object
with them and a function that returns given log-probabilities stands in for it. TRL pads, we pack.
"""

import types
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from fivefold.rl.algorithm import choose_loss
from fivefold.rl.config import (
    CispoConfig,
    GspoConfig,
    LossConfig,
    PpoClipConfig,
    ReductionConfig,
    TisConfig,
)
from fivefold.rl.layout import PackedSamples
from fivefold.rl.pack import pack_samples
from fivefold.rl.reduction import count_totals, reduce_loss
from fivefold.rl.sample import Sample

grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")

ROWS, TOKENS, PROMPT = 6, 9, 3
TOKEN_MEAN = ReductionConfig(kind="token_mean")
CASES: dict[str, tuple[dict, LossConfig, ReductionConfig]] = {
    "grpo": ({"loss_type": "grpo"}, PpoClipConfig(), ReductionConfig()),
    "bnpo": ({"loss_type": "bnpo"}, PpoClipConfig(), TOKEN_MEAN),
    "dapo": ({"loss_type": "dapo"}, PpoClipConfig(), TOKEN_MEAN),
    "dr_grpo": (
        {"loss_type": "dr_grpo"},
        PpoClipConfig(),
        ReductionConfig(kind="fixed", fixed_tokens=TOKENS),
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        GspoConfig(epsilon_low=0.2, epsilon_high=0.28),
        ReductionConfig(),
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, CispoConfig(ratio_high=1.2), TOKEN_MEAN),
    "tis": ({"loss_type": "dapo", "use_vllm": True}, TisConfig(weight_high=1.5), TOKEN_MEAN),
}


class Batch:
    """Random responses of several lengths with holes, as TRL pads them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(2, TOKENS + 1, ROWS)
        completion = np.arange(TOKENS) < lengths[:, None]
        tools = rng.random((ROWS, TOKENS)) > 0.2
        tools[:, 0] = True
        self.completion = torch.from_numpy(completion)
        self.tools = torch.from_numpy(tools)
        self.mask = self.completion & self.tools
        self.new = torch.from_numpy(-rng.exponential(1.0, (ROWS, TOKENS))).requires_grad_()
        self.old = self.new.detach() + torch.from_numpy(rng.normal(0, 0.3, (ROWS, TOKENS)))
        self.old.clamp_(max=0)
        self.rollout = self.old + torch.from_numpy(rng.normal(0, 0.5, (ROWS, TOKENS)))
        self.rollout.clamp_(max=0)
        self.advantages = torch.from_numpy(rng.normal(size=ROWS))

    def samples(self) -> list[Sample]:
        result = []
        for row in range(ROWS):
            tokens = PROMPT + int(self.completion[row].sum())
            stream = np.zeros(tokens)
            mask = np.zeros(tokens, dtype=bool)
            mask[PROMPT:] = self.mask[row, : tokens - PROMPT]
            stream[PROMPT:] = self.rollout[row, : tokens - PROMPT]
            result.append(
                Sample(
                    ids=np.zeros(tokens, dtype=np.int64),
                    loss_mask=mask,
                    rollout_logprobs=stream,
                    versions=np.where(mask, 0, -1),
                    group=str(row),
                    reward=0.0,
                    advantages=np.where(mask, float(self.advantages[row]), 0.0),
                )
            )
        return result

    def laid_out(self, values: Tensor, packed: PackedSamples) -> Tensor:
        """Return TRL's padded values at our packed places."""
        flat = torch.zeros(packed.ids_BT.numel(), dtype=values.dtype)
        for row, begin, length in zip(packed.members, packed.begins, packed.lengths, strict=True):
            first = begin + PROMPT - 1
            places = torch.arange(first, begin + length)
            flat = flat.index_put((places,), values[row, : len(places)])
        return flat


def their_loss(batch: Batch, settings: dict) -> Tensor:
    """Run TRL's own loss on the batch."""
    use_vllm = settings.get("use_vllm", False)
    weight = (batch.old - batch.rollout).exp().clamp(0.0, 1.5)
    fields = {
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "use_vllm": False,
        "vllm_importance_sampling_correction": use_vllm,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "max_completion_length": TOKENS,
        "current_gradient_accumulation_steps": 1,
        "args": types.SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1
        ),
        "model": types.SimpleNamespace(training=True),
        "accelerator": types.SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (
            batch.new,
            torch.zeros_like(batch.new),
            None,
        ),
    }
    trainer = types.SimpleNamespace(**(fields | settings))
    inputs = {
        "prompt_ids": torch.zeros(ROWS, PROMPT, dtype=torch.int64),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.int64),
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.int64),
        "completion_mask": batch.completion.long(),
        "tool_mask": batch.tools.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "importance_sampling_ratio": weight,
        "num_items_in_batch": batch.mask.sum(),
    }
    return grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.numerics
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trls(name: str) -> None:
    settings, config, reduction = CASES[name]
    for seed in range(5):
        batch = Batch(seed)
        theirs = their_loss(batch, settings)
        (their_gradient,) = torch.autograd.grad(theirs, batch.new)
        samples = batch.samples()
        ours = torch.zeros((), dtype=torch.float64)
        for packed in pack_samples(samples, 20, 2, dtype=torch.float64):
            packed = packed.with_old(batch.laid_out(batch.old, packed))
            token_loss = choose_loss(config)(batch.laid_out(batch.new, packed), packed.streams)
            totals = count_totals(samples)
            ours = ours + reduce_loss(token_loss, packed.streams, totals, reduction).total
        (our_gradient,) = torch.autograd.grad(ours, batch.new)
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)
        torch.testing.assert_close(our_gradient, their_gradient, atol=1e-15, rtol=1e-12)
        assert their_gradient.abs().max() > 1e-3
