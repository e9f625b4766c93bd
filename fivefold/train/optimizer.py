"""The optimizer of every gradient stage: Muon for matrices, AdamW for the rest, one state.

Which parameter belongs to whom is decided by name in `fivefold.train.muon.matrix_splits`. AdamW is
torch's own. The state is one flat dict from names to live tensors, complete whenever it is asked
for: torch's distributed checkpoint can save it, and can load into it in place. It is made at the
first question or step, so that an optimizer that only leads to a `sharded` one takes no memory.

Surprise: a parameter that requires no gradient when the optimizer is built has no state and is
never updated; a stage that freezes parameters does so first.

Where data ranks share the state, `sharded` gives the optimizer of this rank's rows: AdamW works on
them as they are, Muon through `parallel.muon`. Its state dict names the same tensors, each as the
whole that the ranks hold together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from fivefold.errors import MismatchError
from fivefold.models.config import ModelConfig
from fivefold.ops.newton_schulz import COEFFICIENTS, orthogonalise
from fivefold.parallel.muon import Matrix, MuonRule, OwnedMuon
from fivefold.parallel.zero import Sharding
from fivefold.train.muon import MatrixSplit, Muon, matrix_splits, product_dtype, update_scale
from fivefold.train.optimizer_config import OptimizerConfig

_ADAM_STATE = {"exp_avg": "adam_mean", "exp_avg_sq": "adam_square", "step": "adam_steps"}
"""torch's names of AdamW's state, and ours in a state dict."""


class HybridOptimizer:
    """Muon and AdamW behind one `step`."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        model: ModelConfig,
        config: OptimizerConfig,
        sharding: Sharding | None = None,
    ) -> None:
        """Assign the parameters of `model.named_parameters()`, which must be fp32 (or fp64).

        Mixed precision keeps fp32 weights here and casts outside: a bf16 weight has no bits for
        the small updates.
        """
        self._parameters = {name: value for name, value in named_parameters if value.requires_grad}
        for name, parameter in self._parameters.items():
            is_exact = parameter.dtype in (torch.float32, torch.float64)
            assert is_exact, f"{name} is {parameter.dtype}: the optimizer needs fp32 weights"
        self._model = model
        self._config = config
        self._sharding = sharding
        shapes = {name: tuple(value.shape) for name, value in self._parameters.items()}
        if sharding is not None:
            shapes = {name: sharding.shapes[name] for name in self._parameters}
        self._splits = matrix_splits(model, shapes, config)
        self._steps = torch.zeros((), dtype=torch.int64)

    @cached_property
    def muon(self) -> Muon | OwnedMuon:
        """What updates the matrices."""
        chosen = {name: value for name, value in self._parameters.items() if self._splits[name]}
        sharding = self._sharding
        if sharding is None or sharding.shard_group.size == 1:
            return Muon(chosen, self._splits, self._config)
        return _build_owned_muon(chosen, self._splits, sharding, self._config)

    @cached_property
    def adamw(self) -> torch.optim.AdamW:
        """What updates the rest."""
        rest = {name: value for name, value in self._parameters.items() if not self._splits[name]}
        return _build_adamw(rest, self._config)

    def sharded(self, sharding: Sharding) -> "HybridOptimizer":
        """Return a fresh optimizer of this rank's rows of the same parameters, as far as it has."""
        rows = sharding.rows
        named = ((name, rows[name]) for name in self._parameters if name in rows)
        return HybridOptimizer(named, self._model, self._config, sharding)

    @property
    def steps(self) -> int:
        """Updates made since the start or the last reset."""
        return int(self._steps)

    @property
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the group whose gradient norm is clipped together."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "indexer": []}
        for name, parameter in self._parameters.items():
            groups["indexer" if ".indexer." in name else "backbone"].append(parameter)
        return groups

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, at this learning rate."""
        self.muon.step(lr)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self._steps += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state by name: live tensors, which later steps change."""
        state = {"steps": self._steps}
        for name, parameter in self._parameters.items():
            if name in self.muon.momenta:
                state[f"{name}.momentum"] = self._as_global(name, self.muon.momenta[name])
            else:
                for theirs, ours in _ADAM_STATE.items():
                    tensor = self.adamw.state[parameter][theirs]
                    state[f"{name}.{ours}"] = self._as_global(name, tensor)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in; the next step continues bit for bit where the saved run would have.

        Raises:
            MismatchError: names or shapes differ, as after a change of the optimizer's config.
        """
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or sorted(
            name for name in own if own[name].shape != state[name].shape
        )
        if wrong:
            raise MismatchError(
                expected=f"optimizer state with {len(own)} tensors that fit this model and policy",
                found=f"{len(state)} tensors, of which {len(wrong)} differ, `{wrong[0]}` first",
                fix="Resume with the config that wrote the state, or start this stage afresh",
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _as_global(self, name: str, tensor: Tensor) -> Tensor:
        if self._sharding is None or tensor.ndim == 0:
            return tensor
        return self._sharding.as_global(name, tensor)

    def reset(self) -> None:
        """Forget all averages and counts, as at the start of a run."""
        for tensor in self.state_dict().values():
            tensor.zero_()


def is_decayed(name: str) -> bool:
    """Does weight decay apply to the parameter? Not to norms and biases."""
    module, kind = name.split(".")[-2:]
    return kind != "bias" and not module.endswith("norm")


def _build_owned_muon(
    rows: Mapping[str, nn.Parameter],
    splits: Mapping[str, tuple[MatrixSplit, ...]],
    sharding: Sharding,
    config: OptimizerConfig,
) -> OwnedMuon:
    """Build Muon on row shards, with the functions of `train.muon`."""
    group = sharding.shard_group
    device = next((value.device for value in rows.values()), torch.device("cpu"))
    dtype = product_dtype(device, config)
    rule = MuonRule(
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        orthogonalise=lambda blocks: orthogonalise(blocks, COEFFICIENTS[config.ns], dtype),
        scale=lambda rows, columns: update_scale(rows, columns, config),
    )
    matrices = [
        matrix for name in rows for matrix in to_matrices(name, sharding.shapes[name], splits[name])
    ]
    return OwnedMuon(rows, sharding.shapes, matrices, group, rule, bucket_bytes=config.batch_bytes)


def to_matrices(name: str, shape: Sequence[int], splits: Sequence[MatrixSplit]) -> list[Matrix]:
    """Return the blocks of a parameter as rows of it, group by group of each split."""
    matrices = []
    for split in splits:
        rows = math.prod(shape[:-1]) // split.groups
        begin, end, _ = slice(split.start, split.stop).indices(rows)
        ranges = [(g * rows + begin, g * rows + end) for g in range(split.groups)]
        parts = [tuple(ranges)] if split.merged else [(one,) for one in ranges]
        matrices += [Matrix(name, part, shape[-1]) for part in parts]
    return matrices


def _build_adamw(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> torch.optim.AdamW:
    """Build torch's AdamW with its state in place, which it would else create in its first step."""
    decayed = [value for name, value in parameters.items() if is_decayed(name)]
    others = [value for name, value in parameters.items() if not is_decayed(name)]
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )
    for parameter in parameters.values():
        adamw.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return adamw
