"""Logits and weights against transformers on tiny random models.

Tolerance 1e-5 on fp32 logits of order 1: about 100 roundings of 1e-7 through two to four layers.
Beyond `index_topk` transformers breaks ties by `torch.topk`; it is given the stable rule there.
"""

import logging
from pathlib import Path

import pytest
import torch
from tiny_model import build, ids_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa

from fivefold.models.config import read_config
from fivefold.models.convert import read_checkpoint, released_tensors, write_checkpoint
from fivefold.models.preset import preset

pytestmark = pytest.mark.numerics
TOLERANCE = 1e-5

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEPSEEK = preset(
    "nano",
    model_type="deepseek_v3",
    index_n_heads=None,
    n_group=4,
    topk_group=2,
    rms_norm_eps=1e-6,
    rope_parameters=YARN,
    v_head_dim=24,
)
SHARED = preset("nano", indexer_types=("full", "shared", "full", "shared"))
CONFIGS = {
    "glm_moe_dsa": preset("nano"),
    "glm_moe_dsa_shared_selection": SHARED,
    "glm4_moe_lite": preset("nano", model_type="glm4_moe_lite", index_n_heads=None),
    "glm4_moe_lite_without_query_latent": preset(
        "nano", model_type="glm4_moe_lite", index_n_heads=None, q_lora_rank=None
    ),
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": preset("nano", model_type="deepseek_v32", indexer_rope_interleave=False),
}


@pytest.fixture(autouse=True)
def _quiet_load_report() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def stable_topk(scores: Tensor, k: int, dim: int = -1, **_: object) -> tuple[Tensor, Tensor]:
    """Stand in for Tensor.topk with the project's selection rule."""
    ordered = torch.sort(scores, dim=dim, descending=True, stable=True)
    return torch.return_types.topk((ordered.values[..., :k], ordered.indices[..., :k]))


@pytest.fixture
def stable_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give transformers' indexer the stable rule; its router too, where ties do not occur."""
    monkeypatch.setattr(modeling_glm_moe_dsa.torch.Tensor, "topk", stable_topk)


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_match_transformers_within_index_topk(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family]
    ours = build(config)
    write_checkpoint(ours, tmp_path / "ours")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = ids_of(config, rows=2, tokens=32)
    with torch.no_grad():
        expected = peer(ids).logits
        found = ours.logits(ours(ids).hidden_BTD)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("tokens", [33, 64, 200])
@pytest.mark.parametrize("family", ["glm_moe_dsa", "glm_moe_dsa_shared_selection", "deepseek_v32"])
@pytest.mark.usefixtures("stable_peer")
def test_logits_match_transformers_beyond_index_topk(
    family: str, tokens: int, tmp_path: Path
) -> None:
    config = CONFIGS[family]
    ours = build(config)
    write_checkpoint(ours, tmp_path / "ours")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = ids_of(config, rows=2, tokens=tokens)
    with torch.no_grad():
        expected = peer(ids).logits
        found = ours.logits(ours(ids).hidden_BTD)
    assert (found - expected).abs().max() < TOLERANCE


def test_selection_narrows_beyond_index_topk() -> None:
    """The test above would be empty if the selection changed nothing."""
    ids = ids_of(preset("nano"), rows=1, tokens=100)
    sparse, dense = build(preset("nano")), build(preset("nano", index_topk=1024))
    with torch.no_grad():
        gap = (sparse(ids).hidden_BTD - dense(ids).hidden_BTD).abs().amax(-1)[0]
    assert gap[:32].max() < TOLERANCE
    assert gap[40:].min() > 1e-3


@pytest.mark.parametrize("family", ["glm_moe_dsa", "glm4_moe_lite", "deepseek_v3"])
def test_weights_round_trip_bit_for_bit(family: str, tmp_path: Path) -> None:
    ours = build(CONFIGS[family])
    write_checkpoint(ours, tmp_path / "ours")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "peer")
    returned = dict(released_tensors(read_checkpoint(tmp_path / "peer")))
    sent = dict(released_tensors(ours))
    assert set(sent) - set(returned) == {n for n in sent if n.startswith("model.layers.4.")}
    for name, tensor in returned.items():
        assert torch.equal(tensor, sent[name]), name
    again = read_checkpoint(tmp_path / "ours")
    for name, tensor in released_tensors(again):
        assert torch.equal(tensor, sent[name]), name


def test_config_keeps_unknown_fields(tmp_path: Path) -> None:
    ours = build(CONFIGS["glm_moe_dsa"].model_copy(update={"future_field": {"a": 1}}))
    write_checkpoint(ours, tmp_path / "ours")
    assert read_config(tmp_path / "ours").model_dump()["future_field"] == {"a": 1}
    assert AutoConfig.from_pretrained(tmp_path / "ours").future_field == {"a": 1}
