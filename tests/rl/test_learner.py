"""Updates: which are taken, and which are left out with the weights as they were."""

import dataclasses
import math

import numpy as np
import torch
from tabular import make_sample
from test_dump import learner_of
from toy import toy_config, toy_model

from fivefold.models.transformer import Transformer
from fivefold.rl.config import DoubleSidedConfig
from fivefold.rl.sample import Sample

BROKEN = 15
"""A word that no random sample holds."""


def model_without(word: int) -> Transformer:
    """Make a model in which a word has no probability: its logit overflows to -inf."""
    model = toy_model()
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = 50.0
        model.lm_head.weight[word] = 0.0
        model.lm_head.weight[word, 0] = -3e38
    return model


def test_update_whose_loss_alone_is_not_finite_is_left_out() -> None:
    config = toy_config()
    algorithm = config.algorithm.model_copy(update={"loss": DoubleSidedConfig()})
    model = model_without(BROKEN)
    learner = learner_of(model, config.model_copy(update={"algorithm": algorithm}))
    samples = [make_sample(number, group=str(number)) for number in range(2)]
    scores = learner.logprobs(samples)
    good = [
        dataclasses.replace(sample, rollout_logprobs=score.astype(np.float32))
        for sample, score in zip(samples, scores, strict=True)
    ]
    bad = [good[0], with_last_word(good[1], BROKEN)]
    assert learner.logprobs(bad)[1][-1] == -math.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ((left_out,), mismatch) = learner.train(bad, 0)
    # The factor of the broken token is 0, and so is its slope; 0 times -inf is the loss.
    assert 0 < left_out.gradient_norm < math.inf
    assert math.isnan(left_out.measured["loss"])
    assert left_out.is_skipped
    assert mismatch.metrics()["engine_kl_nats"] == math.inf
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    ((taken,), _) = learner.train(good, 0)
    assert not taken.is_skipped
    assert not torch.equal(before["norm.weight"], model.norm.weight)


def with_last_word(sample: Sample, word: int) -> Sample:
    return dataclasses.replace(sample, ids=np.append(sample.ids[:-1], word))
