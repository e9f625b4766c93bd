"""How the indexer learns: KL divergence from the attention's own distribution to softmax(I).

The target p of a query is the mean over heads of the attention's probabilities, without gradient;
the loss is the sum over queries of KL(p || softmax(I)). `dense_index_loss` compares over all
visible keys (warm-up, and probing); `selected_index_loss` over the selected ones, for which the
sparse attention hands over its probabilities. Source: DeepSeek-V3.2 report, equations 3 and 4.

The derivative is known in closed form, dL/dI = softmax(I) sum(p) - p, so that the forward pass
computes all gradients block by block, with ReLU masks at hand, and the backward pass multiplies
them by one scalar. Nothing of the size of queries x keys exists for a whole sequence. The selected
form is the dense one with each query in a group of its own: G groups, each with its keys.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fivefold.ops.gather_keys import KeyGather
from fivefold.ops.index_scores import QueryBlock, match_keys, query_blocks, weigh_heads
from fivefold.ops.select_topk import largest, selection_mask
from fivefold.ops.workspace import Workspace


class AttentionMass(NamedTuple):
    """How much of the attention `k` keys hold: sums over queries of a share from 0 to 1."""

    selected: Tensor
    """Held by the keys that the indexer selects; divided by the number of queries: the recall."""
    best: Tensor
    """Held by the k keys of most attention: no selection holds more."""
    recent: Tensor
    """Held by the last k keys, the query's own among them."""


class IndexLoss(NamedTuple):
    """Result of one call, for the caller to divide by a count of its own."""

    total: Tensor
    """Sum over queries of KL(p || softmax(I)) in nats; carries the gradient."""
    queries: Tensor
    """Queries in the sum, int64; padding is left out."""
    mass: AttentionMass | None = None
    """None where it was not asked for."""


def reference(
    q_BTIJ: Tensor,
    key_BSJ: Tensor,
    weight_BTI: Tensor,
    q_BTHQ: Tensor,
    k_BSHQ: Tensor,
    scale: float,
    visible_BTS: Tensor,
) -> Tensor:
    """Return the summed KL over `visible_BTS` from whole tensors, for both forms.

    A query that sees nothing is left out.
    """
    is_kept_BT1 = visible_BTS.any(-1, keepdim=True)
    hidden_BTS = ~visible_BTS & is_kept_BT1
    attention_BHTS = torch.einsum("bthq,bshq->bhts", q_BTHQ, k_BSHQ).detach() * scale
    p_BHTS = attention_BHTS.masked_fill(hidden_BTS[:, None], -torch.inf).softmax(-1)
    match_BITS = torch.einsum("btij,bsj->bits", q_BTIJ, key_BSJ).relu()
    scores_BTS = torch.einsum("bits,bti->bts", match_BITS, weight_BTI)
    log_BTS = scores_BTS.masked_fill(hidden_BTS, -torch.inf).log_softmax(-1)
    kl_BTS = F.kl_div(log_BTS.masked_fill(hidden_BTS, 0.0), p_BHTS.mean(1), reduction="none")
    return kl_BTS.where(is_kept_BT1, 0.0).sum()


def attention_keys(latent_BSC: Tensor, rope_BSR: Tensor, kv_b_HC: Tensor, nope: int) -> Tensor:
    """Return the attention's keys of every head, (B, S, H, nope + R), without gradient."""
    with torch.no_grad():
        k_nope_BSHN = torch.einsum("bsc,hnc->bshn", latent_BSC, kv_b_HC[:, :nope])
        rope_BSHR = rope_BSR[:, :, None].expand(-1, -1, len(kv_b_HC), -1)
        return torch.cat([k_nope_BSHN, rope_BSHR], -1)


def dense_index_loss(
    q_BTIJ: Tensor,
    key_BSJ: Tensor,
    weight_BTI: Tensor,
    q_BTHQ: Tensor,
    k_BSHQ: Tensor,
    scale: float,
    documents_BS: Tensor | None = None,
    *,
    k: int | None = None,
) -> IndexLoss:
    """Return the summed KL over all visible keys; only the indexer's tensors get gradients.

    Args:
        q_BTIJ: index queries, at the last T of the S places; one dtype with the next two, fp32 or
            wider.
        key_BSJ: index keys.
        weight_BTI: weights of the index heads.
        q_BTHQ: queries of the attention, of any dtype.
        k_BSHQ: its keys, as `attention_keys` returns them.
        scale: factor on the attention's products.
        documents_BS: document of each place, -1 for padding, which is left out; None: one a row.
        k: how many keys to select for the mass of attention that they hold; None: no such count.
    """
    gradients = _Gradients.wanted(q_BTIJ, key_BSJ, weight_BTI)
    total = torch.zeros((), dtype=q_BTIJ.dtype, device=q_BTIJ.device)
    queries = torch.zeros((), dtype=torch.int64, device=q_BTIJ.device)
    mass_3 = total.new_zeros(3)
    workspace = Workspace(q_BTIJ)
    with torch.no_grad():
        q_BHTQ, k_BHQS = q_BTHQ.transpose(1, 2), k_BSHQ.permute(0, 2, 3, 1)
        for block in query_blocks(q_BTIJ.shape[1], key_BSJ, q_BTIJ.shape[2], documents_BS):
            target_BTS = _target(q_BHTQ, k_BHQS, scale, block, q_BTIJ.dtype)
            part = _Part(
                q_BTIJ[:, block.queries],
                key_BSJ[:, block.keys],
                weight_BTI[:, block.queries],
                workspace,
            )
            block.hide_(part.scores_GTS, -torch.inf)
            if k is not None:
                mass_3 += _mass(target_BTS, part.scores_GTS, block, k)
            kl, counted, slope_BTS = _compare(part.scores_GTS, target_BTS)
            total += kl
            queries += counted
            if gradients is not None:
                d_q, d_weight, pull_BSX, weighed_BXJ = part.gradients(slope_BTS)
                gradients.q[:, block.queries] = d_q
                gradients.weight[:, block.queries] = d_weight
                gradients.key[:, block.keys] += torch.bmm(pull_BSX, weighed_BXJ)
    if gradients is not None:
        total = _KnownGradients.apply(total, gradients, q_BTIJ, key_BSJ, weight_BTI)
    return IndexLoss(total, queries, None if k is None else AttentionMass(*mass_3))


def selected_index_loss(
    q_BTIJ: Tensor,
    key_BSJ: Tensor,
    weight_BTI: Tensor,
    selected_BTK: Tensor,
    target_BTK: Tensor,
) -> IndexLoss:
    """Return the summed KL over selected keys; only the indexer's tensors get gradients.

    `selected_BTK` holds places of keys, -1 for none (a query without any is left out), and
    `target_BTK` the attention's mean probabilities on them, as `attend_gathered_with_shares`
    returns them. softmax(I) is taken over the selected keys alone.
    """
    gradients = _Gradients.wanted(q_BTIJ, key_BSJ, weight_BTI)
    total = torch.zeros((), dtype=q_BTIJ.dtype, device=q_BTIJ.device)
    queries = torch.zeros((), dtype=torch.int64, device=q_BTIJ.device)
    workspace = Workspace(q_BTIJ)
    with torch.no_grad():
        gather = KeyGather(key_BSJ, selected_BTK)
        q_P1IJ, weight_P1I = q_BTIJ.flatten(0, 1)[:, None], weight_BTI.flatten(0, 1)[:, None]
        target_P1K = target_BTK.flatten(0, 1)[:, None].to(q_BTIJ.dtype)
        for piece in gather.pieces(slice(0, len(q_P1IJ))):
            key_PKJ, empty_P1K = gather.rows(piece)
            part = _Part(q_P1IJ[piece], key_PKJ, weight_P1I[piece], workspace)
            if empty_P1K is not None:
                part.scores_GTS.masked_fill_(empty_P1K, -torch.inf)
            kl, counted, slope_P1K = _compare(part.scores_GTS, target_P1K[piece])
            total += kl
            queries += counted
            if gradients is not None:
                d_q, d_weight, pull_PKX, weighed_PXJ = part.gradients(slope_P1K)
                gradients.q.flatten(0, 1)[piece] = d_q[:, 0]
                gradients.weight.flatten(0, 1)[piece] = d_weight[:, 0]
                gather.add_product_(gradients.key.flatten(0, 1), piece, pull_PKX, weighed_PXJ)
    if gradients is not None:
        total = _KnownGradients.apply(total, gradients, q_BTIJ, key_BSJ, weight_BTI)
    return IndexLoss(total, queries)


class _Part:
    """Index scores of some queries, and the way back from their gradients."""

    def __init__(
        self, q_GTIJ: Tensor, key_GSJ: Tensor, weight_GTI: Tensor, workspace: Workspace
    ) -> None:
        self.q_GTIJ, self.key_GSJ, self.weight_GTI = q_GTIJ, key_GSJ, weight_GTI
        self.match_GTIS = match_keys(q_GTIJ, key_GSJ, workspace)
        self.scores_GTS = weigh_heads(self.match_GTIS, weight_GTI)

    def gradients(self, slope_GTS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of queries and weights, and the two factors of the keys'.

        The matches are spent.
        """
        match_XIS = self.match_GTIS.flatten(0, 1)
        slope_XS1 = slope_GTS.reshape(len(match_XIS), -1, 1)
        d_weight_GTI = torch.bmm(match_XIS, slope_XS1).view_as(self.weight_GTI)
        # The head weights never touch the large tensor: they scale q before or the result after.
        pull_GXS = self.match_GTIS.sign_().mul_(slope_GTS[:, :, None]).flatten(1, 2)
        d_q_GTIJ = torch.bmm(pull_GXS, self.key_GSJ).view_as(self.q_GTIJ)
        weighed_GXJ = (self.q_GTIJ * self.weight_GTI[..., None]).flatten(1, 2)
        return d_q_GTIJ * self.weight_GTI[..., None], d_weight_GTI, pull_GXS.mT, weighed_GXJ


def _compare(scores_GTS: Tensor, target_GTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed KL, the number of queries that see a key, and dKL / dscores.

    A score of -inf is invisible, and its target is 0.
    """
    hidden_GTS = scores_GTS == -torch.inf
    log_GTS = scores_GTS.log_softmax(-1)
    # Of a query that sees nothing all is NaN, and all is hidden.
    slope_GTS = log_GTS.exp().mul_(target_GTS.sum(-1, keepdim=True)).sub_(target_GTS)
    slope_GTS.masked_fill_(hidden_GTS, 0.0)
    cross = (target_GTS * log_GTS.masked_fill_(hidden_GTS, 0.0)).sum()
    kl = torch.xlogy(target_GTS, target_GTS).sum() - cross
    return kl, (~hidden_GTS).any(-1).sum(), slope_GTS


def _target(
    q_BHTQ: Tensor, k_BHQS: Tensor, scale: float, block: QueryBlock, dtype: torch.dtype
) -> Tensor:
    """Return the heads' mean of the attention's probabilities of one block, 0 where hidden."""
    mean_BTS: Tensor | None = None
    heads = q_BHTQ.shape[1]
    for head in range(heads):
        q_BTQ = q_BHTQ[:, head, block.queries] * scale
        scores_BTS = torch.bmm(q_BTQ, k_BHQS[:, head, :, block.keys])
        p_BTS = block.hide_(scores_BTS, -torch.inf).softmax(-1, dtype=dtype)
        mean_BTS = p_BTS if mean_BTS is None else mean_BTS.add_(p_BTS)
    assert mean_BTS is not None, "attention has at least one head"
    return block.hide_(mean_BTS.mul_(1 / heads), 0.0)


def _mass(target_BTS: Tensor, scores_BTS: Tensor, block: QueryBlock, k: int) -> Tensor:
    """Return the three sums of `AttentionMass` for one block."""
    size, keys = target_BTS.shape[1:]
    selected = (target_BTS * selection_mask(scores_BTS, k)).sum()
    best = largest(target_BTS.flatten(0, 1), min(k, keys)).sum()
    is_recent_TS = torch.ones(size, keys, dtype=torch.bool, device=target_BTS.device)
    recent = (target_BTS * is_recent_TS.triu_(keys - size - k + 1)).sum()
    return torch.stack([selected, best, recent])


class _Gradients(NamedTuple):
    """Gradients of the indexer's tensors, filled block by block."""

    q: Tensor
    key: Tensor
    weight: Tensor

    @staticmethod
    def wanted(q_BTIJ: Tensor, key_BSJ: Tensor, weight_BTI: Tensor) -> "_Gradients | None":
        """Return zeros to fill, or None where no gradient is asked for."""
        tensors = (q_BTIJ, key_BSJ, weight_BTI)
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors):
            return None
        return _Gradients(
            *(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors)
        )


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients are known: the backward pass multiplies them by one scalar."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, gradients: _Gradients, q: Tensor, key: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's type
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the backward pass of an index loss runs once"
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(gradient.mul_(grads[0]) for gradient in gradients)
