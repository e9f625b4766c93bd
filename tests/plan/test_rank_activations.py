"""A layer's bytes on one rank of a mesh; the ledger's on real meshes are in `tests/parallel`."""

from dataclasses import replace

import pytest

from fivefold.models.config import ModelConfig
from fivefold.models.preset import preset
from fivefold.plan.config import Precision
from fivefold.plan.memory import layer_activation_bytes
from fivefold.plan.rank_activations import (
    RankBytes,
    RankTokens,
    deferred_bytes,
    input_bytes,
    kept_bytes,
    staying_bytes,
)

TOKENS = 4096
SIZE = RankBytes(narrow=2, wide=2)


def alone(config: ModelConfig) -> RankTokens:
    routed = TOKENS * config.num_experts_per_tok
    return RankTokens(own=TOKENS, sequence=TOKENS, keys=TOKENS, row=TOKENS, routed=routed)


@pytest.mark.parametrize("name", ["nano", "glm47_flash", "glm5"])
@pytest.mark.parametrize("sparse", [False, True])
def test_one_rank_holds_what_one_process_does(name: str, sparse: bool) -> None:
    config = preset(name)
    for layer in (0, config.num_hidden_layers - 1):
        found = kept_bytes(config, layer, alone(config), replace(SIZE, learns=sparse))
        a_token = layer_activation_bytes(config, layer, Precision(), sparse=sparse)
        rows = alone(config).routed if config.is_moe(layer) else 0
        # The place of each padded row of an expert is counted here alone.
        assert found == pytest.approx(TOKENS * a_token + 8 * rows)


def test_tensor_ranks_share_all_but_what_they_gather() -> None:
    config = preset("glm5")
    whole = kept_bytes(config, 40, alone(config), SIZE)
    rank = replace(alone(config), own=TOKENS / 4, routed=alone(config).routed / 4, tensor=4)
    part = kept_bytes(config, 40, rank, SIZE)
    gathered = TOKENS * (2 * config.hidden_size + 2 * (config.q_lora_rank or 0)) * SIZE.narrow
    gathered += TOKENS * (2 * (config.kv_lora_rank or 0) + config.qk_rope_head_dim) * SIZE.narrow
    gathered += TOKENS * 4 * SIZE.exact
    assert part == pytest.approx(whole / 4 + 0.75 * gathered)
    assert input_bytes(config, rank, SIZE) == input_bytes(config, alone(config), SIZE) / 4


def test_parts_are_parts() -> None:
    config = preset("glm5")
    for layer in (0, 40, config.num_hidden_layers):
        kept = kept_bytes(config, layer, alone(config), SIZE)
        assert 0 < staying_bytes(config, layer, alone(config), SIZE) < 0.05 * kept
        assert 0 < deferred_bytes(config, layer, alone(config), SIZE) < 2 * kept
        assert 0 < input_bytes(config, alone(config), SIZE) < 0.1 * kept
