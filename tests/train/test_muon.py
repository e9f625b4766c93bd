"""Muon against a loop over single matrices, torch's Muon and the exact polar factor."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fivefold.models.preset import preset
from fivefold.models.transformer import Transformer
from fivefold.ops.newton_schulz import COEFFICIENTS, orthogonalise, reference
from fivefold.train.muon import MatrixSplit, Muon, matrix_splits, update_scale
from fivefold.train.optimizer_config import OptimizerConfig

NANO = preset("nano")
Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(name: str) -> Shapes:
    """Return the shapes of a preset's parameters, without memory for their values."""
    with torch.device("meta"):
        model = Transformer(preset(name))
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def one_layer() -> Shapes:
    """Return a nano MoE layer, a dense feed-forward and the MTP projection."""
    kept = ("layers.1.", "mtp.eh_proj", "layers.0.mlp.")
    return {name: s for name, s in parameter_shapes("nano").items() if name.startswith(kept)}


def expected_slices(name: str, tensor: Tensor, policy: OptimizerConfig) -> Iterator[Tensor]:
    """Yield the matrices of a nano parameter as views, or gathered copies where heads merge."""
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    per_head = {
        "q_b_proj": [(0, 24), (24, 32)] if policy.split_rope else [(0, 32)],
        "kv_b_proj": [(0, 24), (24, 56)],
        "wq_b": [(0, 16)],
    }
    if part in per_head:
        stride = per_head[part][-1][1]
        starts = range(0, tensor.shape[0], stride)
        for first, last in per_head[part]:
            rows = [tensor[start + first : start + last] for start in starts]
            yield from rows if policy.muon_split else [torch.cat(rows)]
    elif part == "kv_a_proj_with_mqa":
        yield from (tensor[:32], tensor[32:])
    elif tensor.ndim == 3:
        for expert in tensor:
            yield from (expert[:64], expert[64:]) if part == "gate_up" else (expert,)
    else:
        yield tensor


def random_tensors(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def build(shapes: Shapes, config: OptimizerConfig) -> tuple[Muon, dict[str, nn.Parameter]]:
    splits = matrix_splits(NANO, shapes, config)
    parameters = {
        name: nn.Parameter(value)
        for name, value in random_tensors(shapes, seed=1).items()
        if splits[name]
    }
    return Muon(parameters, splits, config), parameters


def take_steps(muon: Muon, parameters: dict[str, nn.Parameter], count: int = 1) -> None:
    for step in range(count):
        gradients = random_tensors({n: tuple(p.shape) for n, p in parameters.items()}, 10 + step)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        muon.step(0.01)


def step_single_matrix(
    weight: Tensor, average: Tensor, gradient: Tensor, config: OptimizerConfig
) -> tuple[Tensor, Tensor]:
    """Return (weight, average) after one Muon step on one matrix at learning rate 0.01."""
    average = config.momentum * average + (1 - config.momentum) * gradient
    mixed = config.momentum * average + (1 - config.momentum) * gradient
    direction = orthogonalise(mixed[None], COEFFICIENTS[config.ns], torch.float32)[0]
    step = 0.01 * 0.2 * math.sqrt(max(weight.shape))
    return weight * (1 - 0.01 * config.weight_decay) - step * direction, average


@pytest.mark.parametrize("name", ["nano", "mini", "glm5", "deepseek_v3", "glm47_flash"])
@pytest.mark.parametrize("muon_split", [True, False])
def test_every_parameter_of_a_preset_has_a_rule(name: str, muon_split: bool) -> None:
    shapes = parameter_shapes(name)
    policy = OptimizerConfig(muon_split=muon_split)
    splits = matrix_splits(preset(name), shapes, policy)
    assert splits.keys() == shapes.keys()
    for parameter, cuts in splits.items():
        is_vector = len(shapes[parameter]) == 1
        is_vocabulary = parameter in ("embed_tokens.weight", "lm_head.weight")
        assert bool(cuts) != (is_vector or is_vocabulary), parameter


@pytest.mark.parametrize("muon_split", [True, False])
@pytest.mark.parametrize("split_rope", [True, False])
def test_splits_visit_each_element_once(muon_split: bool, split_rope: bool) -> None:
    shapes = parameter_shapes("nano")
    policy = OptimizerConfig(muon_split=muon_split, split_rope=split_rope)
    for name, cuts in matrix_splits(NANO, shapes, policy).items():
        visits = torch.zeros(shapes[name])
        for cut in cuts:
            view = cut.view(visits)
            view += 1
            assert view.numel() == math.prod(cut.block_shape(shapes[name]))
        assert torch.equal(visits, torch.full(shapes[name], float(bool(cuts)))), name


def test_switches_move_the_head_and_the_router() -> None:
    shapes = parameter_shapes("nano")
    changed = OptimizerConfig(muon_lm_head=True, muon_router=False)
    splits = matrix_splits(NANO, shapes, changed)
    assert splits["lm_head.weight"] == (MatrixSplit(),)
    assert splits["layers.1.mlp.gate.weight"] == ()
    assert splits["embed_tokens.weight"] == ()


def test_glm5_heads_become_blocks_of_the_published_shapes() -> None:
    shapes = parameter_shapes("glm5")
    splits = matrix_splits(preset("glm5"), shapes, OptimizerConfig())

    def blocks(name: str) -> list[tuple[int, int, int]]:
        full = f"layers.5.{name}"
        return [cut.block_shape(shapes[full]) for cut in splits[full]]

    assert blocks("self_attn.q_b_proj.weight") == [(64, 256, 2048)]
    assert blocks("self_attn.kv_b_proj.weight") == [(64, 192, 512), (64, 256, 512)]
    assert blocks("self_attn.kv_a_proj_with_mqa.weight") == [(1, 512, 6144), (1, 64, 6144)]
    assert blocks("self_attn.indexer.wq_b.weight") == [(32, 128, 2048)]
    assert blocks("mlp.experts.gate_up") == [(256, 2048, 6144)] * 2
    assert blocks("mlp.experts.down") == [(256, 6144, 2048)]


def test_grouped_query_heads_become_blocks_by_their_own_number() -> None:
    shapes = {"q_proj.weight": (96 * 128, 5120), "q_proj.bias": (96 * 128,)}
    shapes |= {"k_proj.weight": (8 * 128, 5120), "v_proj.weight": (8 * 128, 5120)}
    shapes = {f"layers.0.self_attn.{name}": shape for name, shape in shapes.items()}
    shapes["layers.0.self_attn.q_norm.weight"] = (128,)
    splits = matrix_splits(preset("glm45"), shapes, OptimizerConfig())
    blocks = [[cut.block_shape(shapes[name]) for cut in cuts] for name, cuts in splits.items()]
    assert blocks == [[(96, 128, 5120)], [], [(8, 128, 5120)], [(8, 128, 5120)], []]


@pytest.mark.parametrize(
    "name", ["layers.0.self_attn.z_proj.weight", "extra", "mtp.block.norm.weight"]
)
def test_unknown_parameter_is_a_defect(name: str) -> None:
    with pytest.raises(AssertionError, match="no optimizer rule"):
        matrix_splits(NANO, {name: (4, 4)}, OptimizerConfig())


@pytest.mark.parametrize("rows", [4 * 56 - 4, 4 * 56 + 1])
def test_parameter_of_another_shape_is_a_defect(rows: int) -> None:
    with pytest.raises(AssertionError, match="cannot be cut"):
        matrix_splits(NANO, {"layers.0.self_attn.kv_b_proj.weight": (rows, 32)}, OptimizerConfig())


@pytest.mark.numerics
@pytest.mark.parametrize("muon_split", [True, False])
@pytest.mark.parametrize("split_rope", [True, False])
def test_steps_equal_a_loop_over_single_matrices(muon_split: bool, split_rope: bool) -> None:
    config = OptimizerConfig(ns_dtype="float32", muon_split=muon_split, split_rope=split_rope)
    muon, parameters = build(one_layer(), config)
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    slices = {
        name: [(part, torch.zeros_like(part)) for part in expected_slices(name, value, config)]
        for name, value in random_tensors(one_layer(), seed=1).items()
        if name in parameters
    }
    for step in range(2):
        for name, gradient in random_tensors(shapes, 10 + step).items():
            parts = expected_slices(name, gradient, config)
            slices[name] = [
                step_single_matrix(weight, average, part, config)
                for (weight, average), part in zip(slices[name], parts, strict=True)
            ]
    take_steps(muon, parameters, count=2)
    for name, parameter in parameters.items():
        ours = expected_slices(name, parameter.detach(), config)
        for part, (weight, _) in zip(ours, slices[name], strict=True):
            torch.testing.assert_close(part, weight, rtol=1e-5, atol=2e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("policy", [{}, {"muon_split": False}, {"split_rope": True}])
def test_update_of_every_block_has_the_configured_rms(policy: dict[str, Any]) -> None:
    config = OptimizerConfig(weight_decay=0.0, update_rms=0.2, ns_dtype="bfloat16", **policy)
    muon, parameters = build(one_layer(), config)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    take_steps(muon, parameters)
    for name, parameter in parameters.items():
        update = (parameter.detach() - before[name]) / 0.01
        for part in expected_slices(name, update, config):
            rms = part.square().mean().sqrt().item()
            assert 0.185 < rms < 0.215, (name, tuple(part.shape), rms)


@pytest.mark.numerics
def test_update_is_near_the_exact_polar_factor() -> None:
    config = OptimizerConfig(weight_decay=0.0)
    shapes = {"layers.0.self_attn.kv_b_proj.weight": (224, 32), "mtp.eh_proj.weight": (128, 256)}
    muon, parameters = build(shapes, config)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    take_steps(muon, parameters)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        ours = expected_slices(name, (before[name] - parameter.detach()) / 0.01, config)
        gradients = expected_slices(name, parameter.grad, config)
        for update, gradient in zip(ours, gradients, strict=True):
            exact = 0.2 * math.sqrt(max(gradient.shape)) * reference(gradient)
            assert (update - exact).norm() / exact.norm() < 0.15


@pytest.mark.numerics
def test_whole_matrices_agree_with_torch() -> None:
    shapes = {"layers.0.self_attn.o_proj.weight": (128, 128), "mtp.eh_proj.weight": (128, 256)}
    config = OptimizerConfig(ns="glm45", ns_dtype="bfloat16", weight_decay=0.1)
    muon, parameters = build(shapes, config)
    twins = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    theirs = torch.optim.Muon(
        list(twins.values()), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    before = {name: value.detach().clone() for name, value in parameters.items()}
    for step in range(3):
        for name, gradient in random_tensors(shapes, 20 + step).items():
            parameters[name].grad = gradient
            twins[name].grad = gradient.clone()
        muon.step(0.01)
        theirs.step()
    for name, parameter in parameters.items():
        difference = (parameter - twins[name]).norm() / (twins[name] - before[name]).norm()
        # torch rounds the gradient to bf16 before it takes the norm, we after.
        assert difference < 2e-2


def test_scaling_gradients_leaves_updates_unchanged() -> None:
    shapes = one_layer()
    config = OptimizerConfig(ns_dtype="float32")
    results = []
    for scale in (1.0, 10.0):
        muon, parameters = build(shapes, config)
        for step in range(2):
            gradients = random_tensors(shapes, 30 + step)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name] * scale
            muon.step(0.01)
        results.append(parameters)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("batch_bytes", [1, 40_000])
@pytest.mark.parametrize("muon_split", [True, False])
def test_batches_of_any_size_give_the_same_step(batch_bytes: int, muon_split: bool) -> None:
    results = []
    for size in (2**24, batch_bytes):
        config = OptimizerConfig(ns_dtype="float32", batch_bytes=size, muon_split=muon_split)
        muon, parameters = build(one_layer(), config)
        take_steps(muon, parameters)
        results.append(parameters)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=2e-6)


class BatchLedger(TorchDispatchMode):
    """Records the shape of every stack of matrices that is multiplied by its own transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.bmm.out:
            self.stacks.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_bytes", [40_000, 2**24])
def test_step_orthogonalises_each_shape_in_as_few_batches_as_fit(batch_bytes: int) -> None:
    muon, parameters = build(parameter_shapes("nano"), OptimizerConfig(batch_bytes=batch_bytes))
    blocks: Counter[tuple[int, int]] = Counter()
    for name, parameter in parameters.items():
        for part in expected_slices(name, parameter.detach(), OptimizerConfig()):
            blocks[(part.shape[0], part.shape[1])] += 1
    with BatchLedger() as ledger:
        take_steps(muon, parameters)
    limits = {shape: max(batch_bytes // (4 * math.prod(shape)), 1) for shape in blocks}
    assert all(
        count
        <= max(limits[shape] for shape in ((rows, columns), (columns, rows)) if shape in limits)
        for count, rows, columns in ledger.stacks
    )
    batches = sum(math.ceil(count / limits[shape]) for shape, count in blocks.items())
    assert len(ledger.stacks) == 5 * batches


def test_parameter_without_gradient_stays() -> None:
    muon, parameters = build(one_layer(), OptimizerConfig())
    still = "layers.1.mlp.experts.down"
    before = {name: value.detach().clone() for name, value in parameters.items()}
    for name, gradient in random_tensors(one_layer(), 40).items():
        if name in parameters and name != still:
            parameters[name].grad = gradient
    muon.step(0.01)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]) == (name == still), name
    assert not muon.momenta[still].any()


def test_expert_without_tokens_only_decays() -> None:
    config = OptimizerConfig()
    muon, parameters = build({"layers.1.mlp.experts.down": (16, 128, 64)}, config)
    (parameter,) = parameters.values()
    before = parameter.detach().clone()
    parameter.grad = torch.randn(16, 128, 64, generator=torch.Generator().manual_seed(3))
    parameter.grad[5] = 0.0
    muon.step(0.01)
    torch.testing.assert_close(parameter[5], before[5] * (1 - 0.01 * config.weight_decay))
    assert torch.isfinite(parameter).all()


def test_transposed_gradient_gives_the_same_step() -> None:
    shapes = {"layers.0.self_attn.kv_b_proj.weight": (224, 32)}
    results = []
    for transposed in (False, True):
        muon, parameters = build(shapes, OptimizerConfig())
        (parameter,) = parameters.values()
        gradient = random_tensors(shapes, 50)[next(iter(shapes))]
        parameter.grad = gradient.T.contiguous().T if transposed else gradient
        muon.step(0.01)
        results.append(parameter)
    assert torch.equal(*results)


def test_update_scale_follows_the_choice() -> None:
    match, keller = OptimizerConfig(), OptimizerConfig(update_scale="keller")
    assert update_scale(256, 2048, match) == pytest.approx(0.2 * math.sqrt(2048))
    assert update_scale(512, 128, keller) == pytest.approx(2.0)
    assert update_scale(128, 512, keller) == 1.0
