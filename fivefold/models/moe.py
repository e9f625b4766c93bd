"""Mixture of experts: sigmoid router with a balancing bias, a shared expert, a dispatcher.

The bias steers only which experts are chosen; weights come from the unbiased scores and so do
gradients (auxiliary-loss-free balancing). Sources: DeepSeek-V3 report, section 2.1.2; Wang et al.
2024. Choices follow the one selection rule and are sorted by expert, so that replayed and
recomputed routings are comparable number by number. The dispatcher is injected: on one device it
is `ops.experts.run_experts`, under expert parallelism one that communicates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fivefold.models.config import ModelConfig
from fivefold.models.layer import GatedMlp
from fivefold.ops.experts import run_experts
from fivefold.ops.select_topk import select_topk, selection_mask

Dispatcher = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_TD, chosen_TA, weight_TA, gate_up_EFD, down_EDF) -> (T, D); expert parallelism has its own."""


class Routing(NamedTuple):
    """What the router of one layer decided for T = rows x queries tokens."""

    chosen_TA: Tensor
    """Experts of each token, ascending, int64."""
    scores_TE: Tensor
    """Unbiased sigmoid scores, fp32, with gradient."""


class Router(nn.Module):
    """Chooses `num_experts_per_tok` experts a token."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts, self.chosen = config.n_routed_experts, config.num_experts_per_tok
        self.groups, self.chosen_groups = config.n_group, config.topk_group
        self.normalises, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(self.experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(self.experts))

    def forward(self, x_TD: Tensor, forced_TA: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the weights (T, A) and the routing; `forced_TA` replays earlier choices."""
        wide = x_TD.dtype if x_TD.dtype == torch.float64 else torch.float32
        scores_TE = F.linear(x_TD.to(wide), self.weight.to(wide)).sigmoid()
        chosen_TA = self._choose(scores_TE.detach()) if forced_TA is None else forced_TA
        weight_TA = scores_TE.gather(1, chosen_TA)
        if self.normalises:
            weight_TA = weight_TA / (weight_TA.sum(-1, keepdim=True) + 1e-20)
        return weight_TA * self.scaling, Routing(chosen_TA, scores_TE)

    def _choose(self, scores_TE: Tensor) -> Tensor:
        # Scores that are not numbers choose some experts; the loss is none either and is noticed.
        biased_TE = (scores_TE + self.e_score_correction_bias).nan_to_num_(nan=0.0)
        if self.groups > 1:
            grouped = biased_TE.unflatten(-1, (self.groups, -1))
            best_two = grouped.topk(2, dim=-1).values.sum(-1)
            reachable = selection_mask(best_two, self.chosen_groups)
            biased_TE = grouped.masked_fill(~reachable[..., None], -torch.inf).flatten(-2)
        return select_topk(biased_TE, self.chosen)


class Experts(nn.Module):
    """The stacked weights of the routed experts: gate and up rows of each in one tensor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, hidden = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))


class MoE(nn.Module):
    """Routed experts plus the shared one."""

    def __init__(self, config: ModelConfig, dispatch: Dispatcher = run_experts) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.dispatch = dispatch
        self.shared_experts = None
        if config.n_shared_experts:
            self.shared_experts = GatedMlp(
                config.hidden_size, config.moe_intermediate_size * config.n_shared_experts
            )

    def forward(self, x_BTD: Tensor, forced_TA: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Apply to (B, T, D); returns the output and what was routed."""
        x_TD = x_BTD.flatten(0, 1)
        weight_TA, routing = self.gate(x_TD, forced_TA)
        experts = self.experts
        routed_TD = self.dispatch(x_TD, routing.chosen_TA, weight_TA, experts.gate_up, experts.down)
        y_BTD = routed_TD.view_as(x_BTD)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD, routing
