"""The hybrid optimizer: resume, reset, weight decay, groups, and AdamW's closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fivefold.errors import MismatchError
from fivefold.models.preset import preset
from fivefold.train.optimizer import HybridOptimizer, is_decayed
from fivefold.train.optimizer_config import OptimizerConfig

SHAPES = {
    "embed_tokens.weight": (40, 128),
    "layers.0.input_layernorm.weight": (128,),
    "layers.0.self_attn.kv_b_proj.weight": (224, 32),
    "layers.0.self_attn.indexer.wq_b.weight": (128, 64),
    "layers.0.self_attn.indexer.k_norm.weight": (16,),
    "layers.0.self_attn.indexer.k_norm.bias": (16,),
    "layers.1.mlp.experts.gate_up": (16, 128, 128),
    "layers.1.mlp.experts.down": (16, 128, 64),
    "norm.weight": (128,),
    "lm_head.weight": (40, 128),
}
Parameters = dict[str, nn.Parameter]


def build(**changes: Any) -> tuple[HybridOptimizer, Parameters]:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in SHAPES.items()
    }
    config = OptimizerConfig(**changes)
    return HybridOptimizer(parameters.items(), preset("nano"), config), parameters


def take_steps(optimizer: HybridOptimizer, parameters: Parameters, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(1e-2 / (1 + step))
        optimizer.zero_grad()


def copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def load_weights(parameters: Parameters, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def test_adamw_for_all_is_torchs_adamw() -> None:
    ours, parameters = build(matrices="adamw", weight_decay=0.1)
    assert not ours.muon.momenta
    twins = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    decayed = [value for name, value in twins.items() if is_decayed(name)]
    others = [value for name, value in twins.items() if not is_decayed(name)]
    theirs = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            twins[name].grad = parameter.grad.clone()
        ours.step(1e-2)
        theirs.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, twins[name], rtol=1e-5, atol=1e-6)


def test_resumed_run_is_bitwise_equal() -> None:
    straight, parameters = build()
    take_steps(straight, parameters, range(3))
    weights, state = copies(dict(parameters)), copies(straight.state_dict())
    take_steps(straight, parameters, range(3, 6))

    resumed, others = build()
    take_steps(resumed, others, range(7, 9))
    load_weights(others, weights)
    resumed.load_state_dict(state)
    assert resumed.steps == 3
    take_steps(resumed, others, range(3, 6))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name]), name
    assert resumed.state_dict().keys() == straight.state_dict().keys()
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_state_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    zeros_like = torch.zeros_like

    def count(tensor: Tensor) -> Tensor:
        made.append(tensor)
        return zeros_like(tensor)

    monkeypatch.setattr(torch, "zeros_like", count)
    optimizer, parameters = build()
    assert not made, "what only leads to a sharded optimizer takes no memory"
    optimizer.state_dict()
    assert {id(tensor) for tensor in made} == {id(value) for value in parameters.values()}


def test_state_is_flat_complete_before_the_first_step_and_live() -> None:
    optimizer, parameters = build()
    before = optimizer.state_dict()
    muon_names = {name for name in SHAPES if f"{name}.momentum" in before}
    adam_names = {name for name in SHAPES if f"{name}.adam_mean" in before}
    assert muon_names | adam_names == SHAPES.keys()
    assert not muon_names & adam_names
    assert len(before) == 1 + len(muon_names) + 3 * len(adam_names)
    for name in muon_names:
        assert before[f"{name}.momentum"].shape == parameters[name].shape
    take_steps(optimizer, parameters, range(1))
    assert all(tensor.any() for tensor in before.values())
    assert all(before[name] is tensor for name, tensor in optimizer.state_dict().items())


def test_state_of_another_policy_is_refused() -> None:
    optimizer, _ = build()
    other, _ = build(muon_lm_head=True)
    with pytest.raises(MismatchError, match=r"lm_head\.weight\.adam_mean"):
        optimizer.load_state_dict(other.state_dict())


def test_state_of_another_shape_is_refused() -> None:
    optimizer, _ = build()
    state = copies(optimizer.state_dict())
    state["norm.weight.adam_mean"] = torch.zeros(64)
    with pytest.raises(MismatchError, match=r"norm\.weight\.adam_mean"):
        optimizer.load_state_dict(state)


def test_reset_optimizer_continues_like_a_fresh_one() -> None:
    worn, parameters = build()
    take_steps(worn, parameters, range(3))
    worn.reset()
    assert worn.steps == 0
    fresh, others = build()
    load_weights(others, copies(dict(parameters)))
    take_steps(worn, parameters, range(3, 5))
    take_steps(fresh, others, range(3, 5))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, others[name]), name


def test_adamw_parameters_follow_the_closed_form() -> None:
    optimizer, parameters = build()
    names = ("embed_tokens.weight", "norm.weight")
    expected = {name: parameters[name].detach().double() for name in names}
    averages = {name: (torch.zeros(()), torch.zeros(())) for name in names}
    for step in range(1, 4):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name not in names:
                continue
            gradient = parameter.grad.double()
            mean = 0.9 * averages[name][0] + 0.1 * gradient
            square = 0.95 * averages[name][1] + 0.05 * gradient**2
            averages[name] = (mean, square)
            decay = 0.1 if name == "embed_tokens.weight" else 0.0
            corrected = (square / (1 - 0.95**step)).sqrt() + 1e-8
            expected[name] *= 1 - 0.01 * decay
            expected[name] -= 0.01 * mean / (1 - 0.9**step) / corrected
        optimizer.step(0.01)
    for name in names:
        torch.testing.assert_close(
            parameters[name].detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )


def test_zero_gradient_decays_all_but_norms_and_biases() -> None:
    optimizer, parameters = build(weight_decay=0.1)
    before = copies(dict(parameters))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    for name, parameter in parameters.items():
        is_still = "norm" in name
        assert is_decayed(name) != is_still
        factor = 1.0 if is_still else 0.95
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_groups_part_the_indexer_from_the_backbone() -> None:
    optimizer, parameters = build()
    groups = optimizer.parameter_groups
    names = {id(parameter): name for name, parameter in parameters.items()}
    indexer = {names[id(parameter)] for parameter in groups["indexer"]}
    assert indexer == {name for name in SHAPES if "indexer" in name}
    assert len(groups["backbone"]) == len(SHAPES) - len(indexer)


def test_frozen_parameter_has_no_state_and_stays() -> None:
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    parameters["embed_tokens.weight"].requires_grad_(False)
    optimizer = HybridOptimizer(parameters.items(), preset("nano"), OptimizerConfig())
    assert not any(name.startswith("embed_tokens") for name in optimizer.state_dict())
    take_steps(optimizer, parameters, range(1))
    assert torch.equal(parameters["embed_tokens.weight"], torch.ones(40, 128))
    assert not torch.equal(parameters["lm_head.weight"], torch.ones(40, 128))


def test_low_precision_weights_are_a_defect() -> None:
    parameter = nn.Parameter(torch.ones(4, 128, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match="fp32"):
        HybridOptimizer([("lm_head.weight", parameter)], preset("nano"), OptimizerConfig())
