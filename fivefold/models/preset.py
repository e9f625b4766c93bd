"""Named shapes: two small ones of our own and the published ones.

`nano` and `mini` train on a CPU; `small` has GLM-4.7-Flash's proportions cut to one accelerator.
The others repeat released `config.json` files and serve planning, conversion and parity. Every
preset with an indexer has at least 8 index heads: with fewer, the ReLU makes exact ties common.
"""

from fivefold.config import validate
from fivefold.errors import ConfigError
from fivefold.models.config import FivefoldFields, ModelConfig

_OURS = {"eos_token_id": None, "pad_token_id": None, "routed_scaling_factor": 2.5}

_NANO = ModelConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=64,
    kv_lora_rank=32,
    qk_nope_head_dim=24,
    qk_rope_head_dim=8,
    v_head_dim=32,
    head_dim=8,
    n_routed_experts=16,
    num_experts_per_tok=4,
    index_n_heads=8,
    index_head_dim=16,
    index_topk=32,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    **_OURS,
)

_MINI = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_hidden_layers=6,
    first_k_dense_replace=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=48,
    qk_rope_head_dim=16,
    v_head_dim=64,
    head_dim=16,
    n_routed_experts=16,
    num_experts_per_tok=4,
    index_n_heads=8,
    index_head_dim=32,
    index_topk=128,
    max_position_embeddings=32_768,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    **_OURS,
)

_SMALL = ModelConfig(
    vocab_size=32_768,
    hidden_size=1024,
    intermediate_size=5120,
    moe_intermediate_size=768,
    num_hidden_layers=16,
    first_k_dense_replace=1,
    num_attention_heads=10,
    num_key_value_heads=10,
    q_lora_rank=384,
    kv_lora_rank=256,
    qk_nope_head_dim=96,
    qk_rope_head_dim=32,
    v_head_dim=128,
    head_dim=32,
    n_routed_experts=64,
    num_experts_per_tok=4,
    index_n_heads=16,
    index_head_dim=64,
    index_topk=512,
    max_position_embeddings=32_768,
    **{**_OURS, "routed_scaling_factor": 1.8},
)

_GLM47_FLASH = ModelConfig(
    model_type="glm4_moe_lite",
    hidden_size=2048,
    intermediate_size=10_240,
    moe_intermediate_size=1536,
    num_hidden_layers=47,
    first_k_dense_replace=1,
    num_attention_heads=20,
    num_key_value_heads=20,
    q_lora_rank=768,
    n_routed_experts=64,
    num_experts_per_tok=4,
    routed_scaling_factor=1.8,
    index_n_heads=None,
)

_GLM45 = ModelConfig(
    model_type="glm4_moe",
    vocab_size=151_552,
    hidden_size=5120,
    intermediate_size=12_288,
    moe_intermediate_size=1536,
    num_hidden_layers=92,
    first_k_dense_replace=3,
    num_attention_heads=96,
    num_key_value_heads=8,
    q_lora_rank=None,
    kv_lora_rank=None,
    head_dim=128,
    partial_rotary_factor=0.5,
    use_qk_norm=True,
    attention_bias=True,
    n_routed_experts=160,
    index_n_heads=None,
    max_position_embeddings=131_072,
    eos_token_id=(151_329, 151_336, 151_338),
    pad_token_id=151_329,
    fivefold=FivefoldFields(mtp_depths=1),
)

_DEEPSEEK_V3 = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=129_280,
    hidden_size=7168,
    intermediate_size=18_432,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    v_head_dim=128,
    n_group=8,
    topk_group=4,
    index_n_heads=None,
    max_position_embeddings=163_840,
    rms_norm_eps=1e-6,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    eos_token_id=1,
    pad_token_id=None,
    bos_token_id=0,
    fivefold=FivefoldFields(mtp_depths=1),
)

PRESETS: dict[str, ModelConfig] = {
    "nano": _NANO,
    "mini": _MINI,
    "small": _SMALL,
    "glm47_flash": _GLM47_FLASH,
    "glm45": _GLM45,
    "glm5": ModelConfig(),
    "deepseek_v3": _DEEPSEEK_V3,
}


def preset(name: str, **changes: object) -> ModelConfig:
    """Return a named shape, with fields replaced and the result validated.

    Raises:
        ConfigError: an unknown name, or changes that make an impossible shape.
    """
    if name not in PRESETS:
        raise ConfigError(
            expected="the name of a model preset",
            found=repr(name),
            fix=f"Choose one of {', '.join(PRESETS)}",
        )
    return validate(ModelConfig, {**PRESETS[name].model_dump(), **changes}, where=name)
