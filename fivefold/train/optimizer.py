"""The optimizer of every gradient stage: Muon for matrices, AdamW for the rest, one state.

Which parameter belongs to whom is decided by name in `fivefold.train.muon.matrix_splits`. AdamW is
torch's own. The state is one flat dict from names to live tensors, complete from the first moment
on: torch's distributed checkpoint can save it, and can load into it in place.

Surprise: a parameter that requires no gradient when the optimizer is built has no state and is
never updated; a stage that freezes parameters does so first.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fivefold.errors import MismatchError
from fivefold.models.config import ModelConfig
from fivefold.train.muon import Muon, matrix_splits
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
    ) -> None:
        """Assign the parameters of `model.named_parameters()`, which must be fp32 (or fp64).

        Mixed precision keeps fp32 weights here and casts outside: a bf16 weight has no bits for
        the small updates.
        """
        self._parameters = {name: value for name, value in named_parameters if value.requires_grad}
        for name, parameter in self._parameters.items():
            is_exact = parameter.dtype in (torch.float32, torch.float64)
            assert is_exact, f"{name} is {parameter.dtype}: the optimizer needs fp32 weights"
        shapes = {name: value.shape for name, value in self._parameters.items()}
        splits = matrix_splits(model, shapes, config)
        self.muon = Muon(
            {name: value for name, value in self._parameters.items() if splits[name]},
            splits,
            config,
        )
        self.adamw = _build_adamw(
            {name: value for name, value in self._parameters.items() if not splits[name]}, config
        )
        self._steps = torch.zeros((), dtype=torch.int64)

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
                state[f"{name}.momentum"] = self.muon.momenta[name]
            else:
                for theirs, ours in _ADAM_STATE.items():
                    state[f"{name}.{ours}"] = self.adamw.state[parameter][theirs]
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

    def reset(self) -> None:
        """Forget all averages and counts, as at the start of a run."""
        for tensor in self.state_dict().values():
            tensor.zero_()


def is_decayed(name: str) -> bool:
    """Does weight decay apply to the parameter? Not to norms and biases."""
    module, kind = name.split(".")[-2:]
    return kind != "bias" and not module.endswith("norm")


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
