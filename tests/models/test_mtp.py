"""The MTP layer against transformers' generic MtpModel, and its labels against a loop."""

import pytest
import torch
from tiny_model import build, ids_of
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from fivefold.models.config import config_to_released
from fivefold.models.convert import released_tensors
from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer

CONFIG = preset(
    "nano", model_type="deepseek_v3", index_n_heads=None, rms_norm_eps=1e-6, num_hidden_layers=2
)


def peer_of(ours: Transformer) -> tuple[DeepseekV3ForCausalLM, MtpModel]:
    """Port the weights into transformers' model and its MTP wrapper."""
    fields = config_to_released(ours.config)
    fields = {k: v for k, v in fields.items() if k not in ("mlp_layer_types", "fivefold")}
    main = DeepseekV3ForCausalLM(DeepseekV3Config(**fields, num_mtp_layers=1)).eval()
    state = dict(released_tensors(ours))
    prefix = f"model.layers.{ours.config.num_hidden_layers}."
    stack = lambda part, kind: torch.stack(  # noqa: E731
        [state[f"{part}mlp.experts.{e}.{kind}_proj.weight"] for e in range(16)]
    )

    def fuse(part: str) -> dict[str, Tensor]:
        return {
            "mlp.experts.gate_up_proj": torch.cat([stack(part, "gate"), stack(part, "up")], 1),
            "mlp.experts.down_proj": stack(part, "down"),
        }

    wanted = {n: t for n, t in state.items() if prefix not in n and ".experts." not in n}
    wanted |= {f"model.layers.1.{n}": t for n, t in fuse("model.layers.1.").items()}
    main.load_state_dict(wanted)
    mtp = MtpModel(main, 1).eval()
    mine = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    layer = {n: mine.pop(n) for n in ("enorm.weight", "hnorm.weight", "eh_proj.weight")}
    layer["post_norm.weight"] = mine.pop("shared_head.norm.weight")
    layer |= {f"mtp_block.{n}": t for n, t in mine.items() if ".experts." not in n}
    layer |= {f"mtp_block.{n}": t for n, t in fuse(prefix).items()}
    mtp.layers[0].load_state_dict(layer)
    return main, mtp


@pytest.mark.numerics
def test_mtp_chain_matches_transformers() -> None:
    """Three depths of one layer, the state after `shared_head.norm` handed on."""
    ours = build(CONFIG)
    main, mtp = peer_of(ours)
    ids = ids_of(CONFIG, 1, 24)
    tokens = 20
    assert ours.mtp is not None
    with torch.no_grad():
        theirs = main.model(ids[:, :tokens]).last_hidden_state
        state = ours(ids[:, :tokens]).hidden_BTD
        assert (state - theirs).abs().max() < 1e-5
        around = ours.surroundings(torch.arange(tokens)[None])
        for depth in (1, 2, 3):
            ahead = ids[:, depth : depth + tokens]
            positions = torch.arange(depth, depth + tokens)[None]
            theirs = mtp.forward_layer(0, theirs, positions, None, input_ids=ahead)
            state, routing, _ = ours.mtp(state, ours.embed_tokens(ahead), around)
            assert routing is not None
            assert (state - theirs).abs().max() < 1e-5, depth
