import pytest

from fivefold.models.preset import preset
from fivefold.plan.config import Precision
from fivefold.plan.memory import activation_bytes, cache_bytes, layer_activation_bytes, state_bytes
from fivefold.plan.parameters import count_parameters


def test_state_adamw_mixed_precision_is_sixteen_bytes_a_parameter() -> None:
    # ZeRO section 3.1: 2 + 2 bytes of fp16 weights and gradients, 12 bytes of optimizer.
    config = preset("glm47_flash")
    state = state_bytes(config, Precision(gradient_bytes=2), muon=False)

    assert state.total == 16 * count_parameters(config).total


def test_state_muon_saves_one_moment_a_matrix() -> None:
    config = preset("nano")
    saved = (
        state_bytes(config, Precision(), muon=False).moments
        - state_bytes(config, Precision()).moments
    )
    count = count_parameters(config)
    tables = 2 * config.vocab_size * config.hidden_size

    assert saved == 4 * (sum(part.matrices for part in count.parts) - tables)


def test_cache_glm5_keeps_704_values_a_layer() -> None:
    cache = cache_bytes(preset("glm5"), Precision())

    assert cache.total == 78 * 704 * 2
    assert cache.expanded / cache.latent == pytest.approx(64 * 512 / 576)


def test_cache_shared_layers_keep_no_index_keys() -> None:
    types = ("full", "shared", "shared", "shared")
    cache = cache_bytes(preset("nano", indexer_types=types), Precision(cache_bytes=1))

    assert cache.index_keys == 16
    assert cache.latent == 4 * 40


def test_cache_gqa_keeps_keys_and_values() -> None:
    cache = cache_bytes(preset("glm45"), Precision())

    assert cache.total == cache.expanded == 92 * 2 * 8 * 128 * 2


def test_activations_shrink_with_recomputation() -> None:
    config = preset("glm5")
    kept, some, full = (
        activation_bytes(config, Precision(), policy) for policy in ("none", "feed_forward", "full")
    )

    assert kept > 2 * some > 10 * full
    assert full == (78 + 3 * (1 + 5) + 2) * 6144 * 2


def test_activations_sparse_add_the_indexer_inputs() -> None:
    config = preset("glm5")
    dense, sparse = (
        layer_activation_bytes(config, 0, Precision(), sparse=sparse) for sparse in (False, True)
    )

    assert sparse - dense == (32 * 128 + 2 * 128 + 32) * 2
