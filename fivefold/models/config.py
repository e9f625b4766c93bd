"""The shape of a model, in the released checkpoint's field names.

`ModelConfig` reads and writes `config.json` of the `glm_moe_dsa`, `glm4_moe_lite`, `glm4_moe`,
`deepseek_v3` and `deepseek_v32` families without renaming a field, and keeps fields that it does
not know, so that a released directory survives a round trip. Defaults are GLM-5's values (report
table 10 and the released `config.json`). What Fivefold adds stands under the one key `fivefold`.

Surprise: `num_hidden_layers` counts the main stack only. The multi-token-prediction layer is one
more, stored at index `num_hidden_layers`.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic

from fivefold.config import Config, validate
from fivefold.errors import ConfigError, CorruptFileError, MissingFileError

IndexerType = Literal["full", "shared"]


class FivefoldFields(Config):
    """What Fivefold needs beside the released fields."""

    mtp_depths: int = pydantic.Field(default=3, ge=0)
    """Times that the one MTP layer is unrolled in training (GLM-5: 3); 0 trains without it."""

    lora_norm_eps: float = pydantic.Field(default=1e-6, gt=0)
    """Epsilon of the two latent norms. transformers runs 1e-6, GLM's own trainer `rms_norm_eps`."""

    scaled_output_init: bool = False
    """Divide the initial deviation of output projections by sqrt(2 x layers)."""


class ModelConfig(Config):
    """Architecture of one model; see the module docstring for the naming rule."""

    model_config = pydantic.ConfigDict(extra="allow")

    model_type: str = "glm_moe_dsa"
    """Family: glm_moe_dsa, glm4_moe_lite, glm4_moe, deepseek_v3 or deepseek_v32."""
    vocab_size: int = pydantic.Field(default=154_880, gt=0)
    """Rows of the embedding and the output head."""
    hidden_size: int = pydantic.Field(default=6144, gt=0)
    """Width of the residual stream."""
    intermediate_size: int = pydantic.Field(default=12_288, gt=0)
    """Width of the dense feed-forward layers."""
    moe_intermediate_size: int = pydantic.Field(default=2048, gt=0)
    """Width of one expert."""
    num_hidden_layers: int = pydantic.Field(default=78, gt=0)
    """Layers of the main stack, without the MTP layer."""
    first_k_dense_replace: int = pydantic.Field(default=3, ge=0)
    """Leading layers with a dense feed-forward instead of experts."""
    num_attention_heads: int = pydantic.Field(default=64, gt=0)
    """Query heads."""
    num_key_value_heads: int = pydantic.Field(default=64, gt=0)
    """Key and value heads; equals the query heads under MLA."""
    q_lora_rank: int | None = pydantic.Field(default=2048, gt=0)
    """Rank of the query latent; None projects queries directly."""
    kv_lora_rank: int | None = pydantic.Field(default=512, gt=0)
    """Rank of the key-value latent; None means grouped-query attention."""
    qk_nope_head_dim: int = pydantic.Field(default=192, ge=0)
    """Query-key channels a head without position."""
    qk_rope_head_dim: int = pydantic.Field(default=64, gt=0)
    """Query-key channels a head with rotary position; even."""
    v_head_dim: int = pydantic.Field(default=256, gt=0)
    """Value channels a head."""
    head_dim: int = pydantic.Field(default=64, gt=0)
    """Rotary channels under MLA (as released), channels of a head under GQA."""
    partial_rotary_factor: float = 1.0
    """Share of `head_dim` that is rotated under GQA."""
    use_qk_norm: bool = False
    """Normalise query and key heads (GQA only)."""
    attention_bias: bool = False
    """Bias on the attention input projections."""
    n_routed_experts: int = pydantic.Field(default=256, gt=0)
    """Experts of a MoE layer."""
    num_experts_per_tok: int = pydantic.Field(default=8, gt=0)
    """Routed experts a token."""
    n_shared_experts: int = pydantic.Field(default=1, ge=0)
    """Experts that every token passes; merged into one of this many widths."""
    n_group: int = pydantic.Field(default=1, gt=0)
    """Groups for group-limited routing."""
    topk_group: int = pydantic.Field(default=1, gt=0)
    """Groups a token may reach."""
    norm_topk_prob: bool = True
    """Normalise the weights of the chosen experts to sum to one."""
    routed_scaling_factor: float = 2.5
    """Factor on the routed experts' sum."""
    scoring_func: Literal["sigmoid"] = "sigmoid"
    """Router score."""
    index_n_heads: int | None = pydantic.Field(default=32, gt=0)
    """Indexer heads; None means no indexer (plain MLA)."""
    index_head_dim: int = pydantic.Field(default=128, gt=0)
    """Channels of an indexer head; the rotary part comes first."""
    index_topk: int = pydantic.Field(default=2048, gt=0)
    """Keys that the indexer keeps for each query."""
    indexer_types: tuple[IndexerType, ...] | None = None
    """Per layer: `full` runs its indexer, `shared` reuses the last selection. None: all full."""
    indexer_rope_interleave: bool = True
    """Rotary pairing of the indexer: neighbours (GLM-5) or halves (DeepSeek-V3.2)."""
    rope_interleave: bool = True
    """Rotary pairing of the attention: neighbours, or halves."""
    rope_parameters: dict[str, Any] = pydantic.Field(
        default={"rope_type": "default", "rope_theta": 1e6}
    )
    """Rotary base and, for `yarn`, its scaling fields."""
    max_position_embeddings: int = pydantic.Field(default=202_752, gt=0)
    """Longest context in tokens."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the residual stream's norms."""
    hidden_act: Literal["silu"] = "silu"
    """Activation of the gated feed-forward layers."""
    initializer_range: float = pydantic.Field(default=0.02, gt=0)
    """Standard deviation of initial weights."""
    tie_word_embeddings: Literal[False] = False
    """Embedding and output head are separate matrices in every supported family."""
    num_nextn_predict_layers: int = pydantic.Field(default=1, ge=0, le=1)
    """MTP layers with parameters of their own (0 or 1)."""
    eos_token_id: int | tuple[int, ...] | None = (154_820, 154_827, 154_829)
    """Ids that end a generation."""
    pad_token_id: int | None = 154_820
    """Id that fills unused places."""
    bos_token_id: int | None = None
    """Unused by GLM: the template writes `[gMASK]<sop>` itself."""
    fivefold: FivefoldFields = FivefoldFields()
    """Fields of Fivefold's own."""

    @property
    def is_mla(self) -> bool:
        """Does attention go through a key-value latent?"""
        return self.kv_lora_rank is not None

    @property
    def has_indexer(self) -> bool:
        """Does attention select keys with a lightning indexer?"""
        return self.is_mla and self.index_n_heads is not None

    @property
    def qk_head_dim(self) -> int:
        """Query-key channels a head, with and without position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def rope_theta(self) -> float:
        """Rotary base."""
        return float(self.rope_parameters["rope_theta"])

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """All ids that end a generation."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    def is_moe(self, layer_index: int) -> bool:
        """Has this layer (the MTP layer included) experts?"""
        return layer_index >= self.first_k_dense_replace

    def indexer_type(self, layer_index: int) -> IndexerType:
        """Return how this layer gets its selection; the MTP layer always runs its own indexer."""
        if self.indexer_types is None or layer_index >= self.num_hidden_layers:
            return "full"
        return self.indexer_types[layer_index]

    @pydantic.model_validator(mode="after")
    def _check_shape(self) -> "ModelConfig":
        _check(self.qk_rope_head_dim % 2 == 0, "an even `qk_rope_head_dim`", self.qk_rope_head_dim)
        _check(
            self.n_routed_experts % self.n_group == 0 and self.topk_group <= self.n_group,
            "`n_group` to divide `n_routed_experts` and `topk_group` to be at most `n_group`",
            f"{self.n_routed_experts} experts, {self.n_group} groups, {self.topk_group} a token",
        )
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        _check(
            self.num_experts_per_tok <= reachable,
            f"`num_experts_per_tok` to be at most the {reachable} experts that a token can reach",
            self.num_experts_per_tok,
        )
        if self.is_mla:
            _check(
                self.num_key_value_heads == self.num_attention_heads,
                "`num_key_value_heads` to equal `num_attention_heads` under latent attention",
                f"{self.num_key_value_heads} and {self.num_attention_heads}",
            )
        else:
            _check(
                self.num_attention_heads % self.num_key_value_heads == 0,
                "`num_key_value_heads` to divide `num_attention_heads`",
                f"{self.num_key_value_heads} and {self.num_attention_heads}",
            )
        if self.has_indexer:
            _check(
                self.index_head_dim >= self.qk_rope_head_dim,
                "`index_head_dim` to hold the rotary part of `qk_rope_head_dim` channels",
                f"{self.index_head_dim} < {self.qk_rope_head_dim}",
            )
            _check(self.q_lora_rank is not None, "`q_lora_rank` where there is an indexer", None)
        if self.indexer_types is not None:
            _check(
                len(self.indexer_types) == self.num_hidden_layers,
                f"`indexer_types` to name {self.num_hidden_layers} layers",
                len(self.indexer_types),
            )
            _check(
                self.indexer_types[0] == "full", "`indexer_types` to begin with `full`", "`shared`"
            )
        _check(
            "rope_theta" in self.rope_parameters,
            "`rope_parameters` with a `rope_theta`",
            self.rope_parameters,
        )
        return self


def _check(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(
            expected=expected,
            found=str(found),
            fix="Correct the model shape; `fivefold plan RECIPE` prints it without training",
        )


def read_config(checkpoint: Path) -> ModelConfig:
    """Read `config.json` of a Hugging Face directory.

    Raises:
        MissingFileError: the directory or the file is not there.
        CorruptFileError: the file is not JSON.
        ConfigError: it describes another family, or an impossible shape.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise MissingFileError(
            expected=f"a checkpoint directory with `config.json` at `{checkpoint}`",
            found="no such file",
            fix="Give the directory that holds `config.json` and `model*.safetensors`, "
            "for example `runs/nano/pretrain/checkpoint`",
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CorruptFileError(
            expected=f"JSON in `{path}`", found=str(error), fix="Copy the checkpoint again"
        ) from error
    if not isinstance(fields, dict) or fields.get("model_type") not in _ARCHITECTURES:
        kind = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise ConfigError(
            expected=f"`config.json` of a model of the families {', '.join(_ARCHITECTURES)}",
            found=f"`model_type` {kind!r} in `{path}`",
            fix="Give the checkpoint of one of these families",
        )
    return config_from_released(fields)


def config_from_released(fields: dict[str, Any]) -> ModelConfig:
    """Build a config from the fields of a released `config.json`, of any supported family."""
    fields = dict(fields)
    kinds = fields.pop("mlp_layer_types", None)
    if kinds is not None:
        dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
        _check(
            kinds == ["dense"] * dense + ["sparse"] * (len(kinds) - dense),
            "`mlp_layer_types` with the dense layers first",
            kinds,
        )
        fields["first_k_dense_replace"] = dense
    if fields.get("model_type") in ("glm4_moe_lite", "deepseek_v3", "glm4_moe"):
        fields.setdefault("index_n_heads", None)
    if fields.get("model_type") == "deepseek_v32":
        # Its indexer rotates halves, its attention neighbours.
        fields.setdefault("indexer_rope_interleave", False)
    if fields.get("model_type") == "glm4_moe":
        for name in ("q_lora_rank", "kv_lora_rank"):
            fields.setdefault(name, None)
    if "rope_parameters" not in fields and "rope_theta" in fields:
        scaling = fields.get("rope_scaling") or {"rope_type": "default"}
        scaling = {"rope_type": scaling.get("type", "default"), **scaling}
        fields["rope_parameters"] = {**scaling, "rope_theta": fields["rope_theta"]}
    return validate(ModelConfig, fields, where="config.json")


def config_to_released(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json`, with the derived ones that engines read."""
    fields = config.model_dump(mode="json")
    if not config.has_indexer:
        for name in ("index_n_heads", "index_head_dim", "index_topk", "indexer_types"):
            fields.pop(name, None)
    elif fields["indexer_types"] is None:
        fields["indexer_types"] = ["full"] * config.num_hidden_layers
    fields["qk_head_dim"] = config.qk_head_dim
    fields["mlp_layer_types"] = [
        "sparse" if config.is_moe(layer) else "dense" for layer in range(config.num_hidden_layers)
    ]
    fields.setdefault("architectures", [_ARCHITECTURES.get(config.model_type, "AutoModel")])
    fields.setdefault("moe_layer_freq", 1)
    fields.setdefault("topk_method", "noaux_tc")
    fields.setdefault("dtype", "float32")
    return fields


_ARCHITECTURES = {
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
}
