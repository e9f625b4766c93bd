"""The tensors that autograd saves in our own blocks as oracle of the planner's activation bytes."""

import pytest

from fivefold.models.config import ModelConfig
from fivefold.models.preset import preset
from fivefold.plan.config import Precision
from fivefold.plan.memory import layer_activation_bytes

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.numerics

_ROWS = 4


def _saved_bytes(config: ModelConfig, layer: int, dtype) -> float:
    """Return the bytes a token that one block saves, each storage once, weights left out."""
    from fivefold.models.transformer import Transformer

    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    for name, buffer in model.named_buffers():
        if "correction" in name:
            buffer.zero_()
    model = model.to(dtype)
    tokens = config.index_topk
    around = model.surroundings(torch.arange(tokens)[None])
    ignored = {p.untyped_storage().data_ptr() for p in model.parameters()}
    ignored.add(around.turn_BTR.untyped_storage().data_ptr())
    saved: dict[int, int] = {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            saved[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(_ROWS, tokens, config.hidden_size, generator=generator).to(dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.layers[layer](x.requires_grad_(), around)
    return sum(saved.values()) / (_ROWS * tokens)


@pytest.mark.parametrize("name", ["nano", "mini"])
@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "experts"])
@pytest.mark.parametrize("size", [2, 4], ids=["bf16", "fp32"])
def test_layer_activation_bytes_equal_what_autograd_saves(
    name: str, layer: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The padding of each expert's rows does not grow with tokens.
    monkeypatch.setattr("fivefold.ops.experts.common_rows", lambda rows: rows)
    config = preset(name, num_hidden_layers=2, num_nextn_predict_layers=0)
    measured = _saved_bytes(config, layer, torch.bfloat16 if size == 2 else torch.float32)
    counted = layer_activation_bytes(config, layer, Precision(activation_bytes=size))
    if layer == 1 and size == 2:
        # The router's fp32 copy of its weights does not grow with tokens.
        measured -= 4 * config.n_routed_experts * config.hidden_size / (_ROWS * config.index_topk)
    if layer == 1 and size == 4:
        # In fp32 the router reads the normalised stream itself instead of a wider copy.
        counted -= 4 * config.hidden_size

    assert measured == pytest.approx(counted, rel=0.01)
