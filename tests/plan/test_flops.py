import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.models.preset import PRESETS, preset
from fivefold.plan.config import TrainingStage
from fivefold.plan.flops import (
    decode_flops,
    forward_flops,
    head_flops,
    layer_flops,
    mean_selected_keys,
    mean_visible_keys,
    pair_flops,
    training_flops,
)
from fivefold.plan.parameters import count_parameters


@given(context=st.integers(1, 300), topk=st.integers(1, 300))
def test_mean_keys_equal_enumeration(context: int, topk: int) -> None:
    visible = range(1, context + 1)

    assert mean_visible_keys(context) == pytest.approx(sum(visible) / context)
    assert mean_selected_keys(context, topk) == pytest.approx(
        sum(min(keys, topk) for keys in visible) / context
    )


@pytest.mark.parametrize(
    ("causal", "published_tflops"), [(True, 385.0), (False, 432.0)], ids=["causal", "non-causal"]
)
def test_training_flops_deepseek_v3_reproduce_published_rate(
    causal: bool, published_tflops: float
) -> None:
    # "Insights into DeepSeek-V3" (ISCA 2025), table 4: 272.80B tokens a day on 2048 H800.
    config = preset("deepseek_v3", num_nextn_predict_layers=0)
    step = training_flops(config, 4096)
    flops_a_token = step.total if causal else step.total + step.attention_core
    tokens_a_second = 272.80e9 / 86_400 / 2048

    assert tokens_a_second * flops_a_token / 1e12 == pytest.approx(published_tflops, rel=5e-3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_forward_projections_are_two_flops_an_active_weight(name: str) -> None:
    config = preset(name)
    count = count_parameters(config)
    flops = forward_flops(config, 1, sparse=True)
    pairs = flops.attention_core + flops.indexer_scores
    matrices = sum(part.active - part.vectors for part in count.parts if part.name != "mtp")

    assert flops.total - pairs == 2 * matrices


def test_forward_sparse_equals_dense_plus_indexer_up_to_topk() -> None:
    config = preset("nano")
    dense = forward_flops(config, config.index_topk)
    sparse = forward_flops(config, config.index_topk, sparse=True)

    assert sparse.attention_core == dense.attention_core
    assert sparse.total - dense.total == sparse.indexer_projections + sparse.indexer_scores > 0


def test_forward_glm5_attention_grows_only_when_dense() -> None:
    config = preset("glm5")
    dense = [forward_flops(config, context).attention_core for context in (8192, 131_072)]
    sparse = [
        forward_flops(config, length, sparse=True).attention_core for length in (8192, 131_072)
    ]

    assert dense[1] / dense[0] == pytest.approx(16, rel=1e-3)
    assert sparse[1] / sparse[0] < 1.15


def test_pair_absorbed_costs_latent_channels() -> None:
    config = preset("glm5")

    assert pair_flops(config, absorbed=True) == 2 * 64 * (576 + 512)
    assert pair_flops(config, absorbed=False) == 2 * 64 * (256 + 256)


def test_training_mtp_scales_with_depths() -> None:
    shapes = [preset("nano", fivefold={"mtp_depths": depths}) for depths in (1, 2, 3)]
    mtp = [training_flops(shape, 256).mtp for shape in shapes]

    assert mtp[1] == pytest.approx(2 * mtp[0])
    assert mtp[2] == pytest.approx(3 * mtp[0])
    assert 3 * 3 * head_flops(shapes[2]) < mtp[2]


@given(
    name=st.sampled_from(sorted(PRESETS)),
    context=st.integers(1, 8192),
    stage=st.sampled_from(["dense", "sparse"]),
)
def test_training_full_recompute_adds_one_forward_of_every_layer(
    name: str, context: int, stage: TrainingStage
) -> None:
    config = preset(name)
    none, some, full = (
        training_flops(config, context, stage=stage, recompute=policy).total
        for policy in ("none", "feed_forward", "full")
    )
    sparse = stage == "sparse"
    depths = config.fivefold.mtp_depths * config.num_nextn_predict_layers
    block = layer_flops(config, [config.num_hidden_layers], context, sparse=sparse).total
    layers = forward_flops(config, context, sparse=sparse).total - head_flops(config)

    assert full - none == pytest.approx(layers + depths * (block + 4 * config.hidden_size**2))
    assert none < some < full


def test_training_warmup_costs_less_than_dense_training() -> None:
    config = preset("glm5")
    warmup = training_flops(config, 202_752, stage="warmup")
    forward = forward_flops(config, 202_752)

    assert warmup.mtp == warmup.head == 0
    assert warmup.attention_core == forward.attention_core
    assert forward.total < warmup.total < training_flops(config, 202_752).total


def test_decode_is_the_increment_of_a_longer_row() -> None:
    # A GQA model has one form of attention, so the n-th row token costs what decoding it costs.
    config = preset("glm45", num_hidden_layers=4)
    rows = [length * forward_flops(config, length).total for length in range(1, 40)]

    for length, (shorter, longer) in enumerate(itertools.pairwise(rows), start=2):
        assert longer - shorter == pytest.approx(decode_flops(config, length).total)
