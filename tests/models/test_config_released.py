"""Model shapes: what is refused, and that released `config.json` files keep their meaning."""

import json
from pathlib import Path
from typing import Any

import pytest

from fivefold.config import hash_config
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError
from fivefold.models.config import (
    ModelConfig,
    config_from_released,
    config_to_released,
    read_config,
)
from fivefold.models.preset import PRESETS, preset

# The fields that `config.json` of the released models hold, where they matter to a shape.
GLM5: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "attention_dropout": 0.0,
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "indexer_rope_interleave": True,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "moe_intermediate_size": 2048,
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 78,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "v_head_dim": 256,
    "vocab_size": 154880,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "max_position_embeddings": 163840,
    "n_group": 8,
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "topk_group": 4,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": None,
}


def refusal(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        preset("nano", **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"qk_rope_head_dim": 7}, "even `qk_rope_head_dim`", "7"),
        ({"num_key_value_heads": 2}, "equal `num_attention_heads`", "2 and 4"),
        ({"n_group": 3}, "`n_group` to divide", "16 experts, 3 groups, 1 a token"),
        ({"topk_group": 2}, "at most `n_group`", "1 groups, 2 a token"),
        ({"n_group": 8}, "the 2 experts that a token can reach", "4"),
        ({"num_experts_per_tok": 17}, "the 16 experts", "17"),
        ({"index_head_dim": 4}, "`index_head_dim` to hold the rotary part", "4 < 8"),
        ({"q_lora_rank": None}, "`q_lora_rank` where there is an indexer", "None"),
        ({"indexer_types": ("full",) * 3}, "name 4 layers", "3"),
        ({"indexer_types": ("shared",) + ("full",) * 3}, "begin with `full`", "`shared`"),
        ({"rope_parameters": {"rope_type": "default"}}, "with a `rope_theta`", "rope_type"),
        ({"vocab_size": 0}, "`nano.vocab_size`", "0"),
        ({"num_nextn_predict_layers": 2}, "`nano.num_nextn_predict_layers`", "2"),
        ({"indexer_types": ("full", "half")}, "`nano.indexer_types.1`", "'half'"),
        ({"scoring_func": "softmax"}, "`nano.scoring_func`", "'softmax'"),
        ({"tie_word_embeddings": True}, "`nano.tie_word_embeddings`", "True"),
    ],
)
def test_impossible_shape_says_what_was_expected_and_found(
    changes: dict[str, object], expected: str, found: str
) -> None:
    expected_part, _, found_part = refusal(**changes).partition("; found ")
    assert expected in expected_part
    assert found in found_part


def test_query_heads_that_do_not_divide_are_refused_without_latent() -> None:
    with pytest.raises(ConfigError, match="divide `num_attention_heads`"):
        preset("glm45", num_key_value_heads=7)
    assert preset("glm45", num_key_value_heads=12).num_key_value_heads == 12


def test_selection_wider_than_the_context_means_dense_and_is_fine() -> None:
    config = preset("nano", index_topk=10**6)
    assert config.index_topk > config.max_position_embeddings


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="nano, mini, small"):
        preset("giant")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_config_json(name: str) -> None:
    config = PRESETS[name]
    again = config_from_released(json.loads(json.dumps(config_to_released(config))))
    # Written out layer by layer; without an indexer its fields are not written at all.
    rewritten = {"indexer_types"}
    if config.has_indexer:
        assert again.indexer_types == ("full",) * config.num_hidden_layers
    else:
        rewritten |= {"index_head_dim", "index_topk"}
    for field in ModelConfig.model_fields.keys() - rewritten:
        assert getattr(again, field) == getattr(config, field), field


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].has_indexer])
def test_preset_with_indexer_has_at_least_eight_index_heads(name: str) -> None:
    assert (PRESETS[name].index_n_heads or 0) >= 8


def test_released_glm5_fields_are_the_defaults() -> None:
    config = config_from_released(GLM5)
    known = {name for name in ModelConfig.model_fields if name != "fivefold"}
    defaults = ModelConfig()
    assert {name: getattr(config, name) for name in known} == {
        name: getattr(defaults, name) for name in known
    }


@pytest.mark.parametrize("fields", [GLM5, DEEPSEEK_V3], ids=["glm5", "deepseek_v3"])
def test_released_fields_survive_unaltered_even_unknown_ones(fields: dict[str, Any]) -> None:
    back = config_to_released(config_from_released(fields))
    assert {name: back[name] for name in fields} == fields


def test_released_deepseek_v3_is_the_preset() -> None:
    config = config_from_released(DEEPSEEK_V3)
    for field in ModelConfig.model_fields.keys() - {"fivefold", "rope_parameters"}:
        assert getattr(config, field) == getattr(PRESETS["deepseek_v3"], field), field
    for name, value in PRESETS["deepseek_v3"].rope_parameters.items():
        assert config.rope_parameters[name] == value
    assert not config.has_indexer


@pytest.mark.parametrize(
    ("model_type", "is_mla", "has_indexer"),
    [
        ("glm_moe_dsa", True, True),
        ("deepseek_v32", True, True),
        ("deepseek_v3", True, False),
        ("glm4_moe_lite", True, False),
        ("glm4_moe", False, False),
    ],
)
def test_family_decides_latent_and_indexer(
    model_type: str, is_mla: bool, has_indexer: bool
) -> None:
    config = config_from_released({"model_type": model_type, "rope_theta": 1e6})
    assert (config.is_mla, config.has_indexer) == (is_mla, has_indexer)


@pytest.mark.numerics
@pytest.mark.parametrize(
    "name",
    [
        "GlmMoeDsaConfig",
        "DeepseekV3Config",
        pytest.param(
            "Glm4MoeLiteConfig",
        ),
    ],
)
def test_config_json_of_transformers_keeps_its_shape(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name)()
    config = config_from_released(json.loads(json.dumps(theirs.to_dict())))
    for field in ModelConfig.model_fields:
        if hasattr(theirs, field) and field not in ("rope_parameters", "indexer_types"):
            value = getattr(theirs, field)
            assert getattr(config, field) == (tuple(value) if isinstance(value, list) else value)
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    layers = getattr(theirs, "mlp_layer_types", None) or [
        "sparse" if layer >= theirs.first_k_dense_replace else "dense"
        for layer in range(theirs.num_hidden_layers)
    ]
    assert [config.is_moe(layer) for layer in range(theirs.num_hidden_layers)] == [
        kind == "sparse" for kind in layers
    ]


def test_derived_values_follow_the_fields() -> None:
    config = preset("nano", indexer_types=("full", "shared", "shared", "full"))
    assert config.qk_head_dim == 32
    assert [config.is_moe(layer) for layer in range(5)] == [False, True, True, True, True]
    assert [config.indexer_type(layer) for layer in (0, 1, 3, 4)] == [
        "full",
        "shared",
        "full",
        "full",
    ]
    assert preset("glm45").qk_head_dim == 128


@pytest.mark.parametrize(("eos", "ids"), [(None, ()), (1, (1,)), ((1, 2), (1, 2)), ([3], (3,))])
def test_stop_ids_are_a_tuple_however_they_are_written(eos: object, ids: tuple[int, ...]) -> None:
    assert preset("nano", eos_token_id=eos).stop_token_ids == ids


def test_hash_tells_shapes_apart_and_keeps_equal_ones_together() -> None:
    hashes = {hash_config(config) for config in PRESETS.values()}
    assert len(hashes) == len(PRESETS)
    assert hash_config(config_from_released(GLM5)) != hash_config(ModelConfig(vocab_size=1))


def test_missing_and_damaged_config_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 12')
    with pytest.raises(CorruptFileError, match="JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "glm_moe_dsa", "hidden_size": "wide"}')
    with pytest.raises(ConfigError, match=r"`config\.json\.hidden_size`.*'wide'"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"model_type": "llama"}'])
def test_foreign_config_json_is_no_glm5(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((ConfigError, CorruptFileError), match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("field", ["q_lora_rank", "kv_lora_rank", "index_n_heads"])
@pytest.mark.parametrize("value", [0, -1])
def test_optional_width_is_positive_where_it_is_given(field: str, value: int) -> None:
    assert field in refusal(**{field: value})
