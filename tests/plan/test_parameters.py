import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.models.config import ModelConfig
from fivefold.models.preset import PRESETS, preset
from fivefold.plan.parameters import count_parameters, indexer_matrices


def test_count_glm5_equals_released_checkpoint() -> None:
    count = count_parameters(preset("glm5"))

    assert count.total == 753_864_139_008
    assert count["router bias"].total == 75 * 256


@pytest.mark.parametrize(
    ("name", "billions", "active_billions"),
    [
        ("glm5", 743.9, 40.83),  # report table 10: 744B, 40B active
        ("glm45", 352.8, 32.9),  # GLM-4.5 report: 355B, 32B active
        ("deepseek_v3", 671.0, 36.6),  # DeepSeek-V3 report: 671B, 37B active
        ("glm47_flash", 29.94, 3.58),  # GLM-4.7-Flash card: 30B-A3B
        ("nano", 0.002109, 0.000962),
        ("mini", 0.012211, 0.005264),
    ],
)
def test_count_matches_published_size(name: str, billions: float, active_billions: float) -> None:
    count = count_parameters(preset(name))

    assert count.total_without_mtp / 1e9 == pytest.approx(billions, rel=1e-3)
    assert count.active / 1e9 == pytest.approx(active_billions, rel=2e-3)


def test_count_glm5_active_without_head() -> None:
    assert count_parameters(preset("glm5")).active_without_head / 1e9 == pytest.approx(
        39.88, abs=5e-3
    )


def test_count_deepseek_v3_checkpoint_with_its_copies_of_embedding_and_head() -> None:
    # The released checkpoint repeats embedding and head inside its MTP layer: 684.5B values.
    config = preset("deepseek_v3")
    copies = 2 * config.vocab_size * config.hidden_size

    assert (count_parameters(config).total + copies) / 1e9 == pytest.approx(684.5, abs=0.05)


def test_count_shared_indexer_layers_carry_no_weights() -> None:
    full = preset("nano")
    shared = preset("nano", indexer_types=("full", "shared", "shared", "full"))
    saved = count_parameters(full).total - count_parameters(shared).total

    assert saved == 2 * (indexer_matrices(full) + 2 * full.index_head_dim)


def test_count_without_mtp_drops_exactly_that_part() -> None:
    count = count_parameters(preset("nano"))
    without = count_parameters(preset("nano", num_nextn_predict_layers=0))

    assert without.total == count.total_without_mtp


@given(
    name=st.sampled_from(sorted(PRESETS)),
    layers=st.integers(1, 12),
    dense=st.integers(0, 14),
    experts=st.sampled_from([8, 16, 64]),
)
def test_count_active_never_exceeds_total(name: str, layers: int, dense: int, experts: int) -> None:
    config = preset(
        name,
        num_hidden_layers=layers,
        first_k_dense_replace=dense,
        n_group=1,
        topk_group=1,
        n_routed_experts=experts,
    )
    count = count_parameters(config)

    assert all(0 <= part.active <= part.total for part in count.parts)
    assert count.active <= count.total_without_mtp <= count.total


def test_count_total_is_the_sum_of_the_released_tensors() -> None:
    config = preset("nano")

    assert count_parameters(config).total == sum(_released_tensor_sizes(config))


def test_part_matrices_and_vectors_add_up() -> None:
    for part in count_parameters(preset("glm45")).parts:
        assert dataclasses.replace(part, vectors=0).total == part.matrices


def _released_tensor_sizes(config: ModelConfig) -> list[int]:
    """List the size of every tensor of the checkpoint layout, name by name."""
    width, heads = config.hidden_size, config.num_attention_heads
    query_rank, latent = config.q_lora_rank or 0, config.kv_lora_rank or 0
    index_heads, index_width = config.index_n_heads or 0, config.index_head_dim
    sizes = [config.vocab_size * width, config.vocab_size * width, width]
    for layer in range(config.num_hidden_layers + 1):
        sizes += [width, width]  # input_layernorm, post_attention_layernorm
        sizes += [query_rank * width, query_rank, heads * config.qk_head_dim * query_rank]
        sizes += [(latent + config.qk_rope_head_dim) * width, latent]
        sizes += [heads * (config.qk_nope_head_dim + config.v_head_dim) * latent]
        sizes += [width * heads * config.v_head_dim]
        sizes += [index_heads * index_width * query_rank, index_width * width]
        sizes += [index_width, index_width, index_heads * width]
        if layer < config.first_k_dense_replace:
            sizes += [config.intermediate_size * width] * 3
        else:
            sizes += [config.n_routed_experts * width, config.n_routed_experts]
            experts = config.n_routed_experts + config.n_shared_experts
            sizes += [config.moe_intermediate_size * width] * 3 * experts
    return [*sizes, 2 * width * width, width, width, width]  # eh_proj, enorm, hnorm, shared norm
