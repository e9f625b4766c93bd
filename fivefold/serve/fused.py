"""Derived weights of one layer, arranged for few and large operators.

A decode step of a small model on a CPU is nine tenths dispatch, so that what can be multiplied
together beforehand is: one product makes the query latent, the key-value latent, the rotated key,
the index key and the index weights; another the absorbed queries of all heads and the index
queries, the softmax scale included; a third takes the heads' latent context to the residual stream.
Sources: DeepSeek-V2 report, section 2.1.2 (absorption).

Surprise: heads and keys carry their rotary channels FIRST and always as neighbouring pairs; weights
of a model that rotates halves are permuted here, which no dot product notices.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fivefold.models.config import ModelConfig
from fivefold.models.layer import Linear, RMSNorm
from fivefold.models.mla import LatentAttention
from fivefold.ops.product import Packed
from fivefold.ops.rms_norm import rms_norm


class Norm:
    """`ops.rms_norm` in five small operators instead of eight where all is fp32."""

    def __init__(self, norm: RMSNorm) -> None:
        """Take over epsilon, and share the gain."""
        self._gain_D, self._eps = norm.weight, norm.eps
        self._share = 1 / len(norm.weight)
        self._eps_11 = torch.full((1, 1), norm.eps, dtype=torch.float32, device=norm.weight.device)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Normalise the last axis; a wide residual stream enters narrow products here."""
        if x_TD.dtype == self._gain_D.dtype == torch.float32:
            norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
            scale_T1 = torch.addcmul(self._eps_11, norm_T1, norm_T1, value=self._share).rsqrt_()
            return (x_TD * scale_T1).mul_(self._gain_D)
        return rms_norm(x_TD, self._gain_D, self._eps)


class LatentQueries(NamedTuple):
    """From the query latent to queries."""

    norm: Norm
    weight_YL: Packed
    """H x X absorbed queries, then I x J index queries."""

    def __call__(self, latent_TL: Tensor) -> Tensor:
        """Return the queries (T, Y)."""
        return self.weight_YL.linear(self.norm(latent_TL))


@dataclass(frozen=True)
class FusedAttention:
    """Norms and projections of one layer; X = R + C, Y the widths that `in_widths` names."""

    in_norm: Norm
    latent_norm: Norm
    """Of the key-value latent."""

    in_YD: Packed
    """Rotated key, latent, index key, query latent (or absorbed queries), index weights."""
    in_bias_Y: Tensor | None
    in_widths: tuple[int, ...]
    """Widths of: key row R + C, index key, queries, index weights, padding."""
    latent_queries: LatentQueries | None
    """None where queries come from the residual stream, by `in_YD`."""
    index_weight_ID: Tensor | None
    """Weights of the index heads where they are fp32 and the model is not."""
    index_norm: tuple[Tensor, Tensor] | None
    """Gain and bias of the index key's norm."""
    out_DY: Packed
    """From the heads' latent context."""
    out_bias_D: Tensor | None


@torch.no_grad()
def fuse_attention(
    in_norm: RMSNorm, attention: LatentAttention, config: ModelConfig
) -> FusedAttention:
    """Arrange one attention layer and its norm: copies beside shared gains.

    After any update, in place or not, they must be made again before the next step.
    """
    nope, rope, latent = attention.nope, attention.rope, attention.latent
    dtype = attention.o_proj.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    heads = attention.heads
    kv_b_HYC = attention.kv_b_proj.weight.to(wide).view(heads, -1, latent)
    up_k_HNC, up_v_HVC = kv_b_HYC.split([nope, kv_b_HYC.shape[1] - nope], dim=1)
    pairs = _pair_order(rope, is_halves=not config.rope_interleave)
    from_latent = hasattr(attention, "q_a_proj")
    q_proj: Linear = attention.q_b_proj if from_latent else attention.q_proj
    q_HQL = q_proj.weight.to(wide).view(heads, nope + rope, -1)
    absorbed_HCL = torch.einsum("hnc,hnl->hcl", up_k_HNC, q_HQL[:, :nope])
    absorbed = torch.cat([q_HQL[:, nope:][:, pairs], absorbed_HCL], 1).flatten(0, 1)
    absorbed = (absorbed * attention.scale).to(dtype)

    kv_a = attention.kv_a_proj_with_mqa
    order = torch.cat([latent + pairs, torch.arange(latent)])
    parts = [kv_a.weight[order]]
    biases = [None if kv_a.bias is None else kv_a.bias[order]]
    index_weight, index_norm, queries = None, None, []
    widths = [rope + latent, 0, 0, 0]
    if attention.indexer is not None:
        index_pairs = _pair_order(rope, is_halves=not config.indexer_rope_interleave)
        indexer = attention.indexer
        key_order = torch.cat([index_pairs, torch.arange(rope, indexer.head_dim)])
        parts.append(indexer.wk.weight[key_order])
        biases.append(None)
        index_norm = indexer.k_norm.weight[key_order], indexer.k_norm.bias[key_order]
        wq_IJL = indexer.wq_b.weight.view(indexer.heads, indexer.head_dim, -1)[:, key_order]
        queries.append(wq_IJL.flatten(0, 1))
        widths[1] = indexer.head_dim
        index_weight = indexer.weights_proj.weight.to(wide)
        index_weight = index_weight * (indexer.heads * indexer.head_dim) ** -0.5
    q_in = attention.q_a_proj.weight if from_latent else absorbed
    parts.append(q_in)
    biases.append(attention.q_a_proj.bias if from_latent else None)
    widths[2] = len(q_in)
    if index_weight is not None and dtype == wide:
        parts.append(index_weight)
        biases.append(None)
        widths[3], index_weight = len(index_weight), None
    # Complex views of a row need an even stride.
    padding = sum(widths) % 2
    parts.append(q_in.new_zeros(padding, q_in.shape[1]))
    biases.append(None)
    o_DHV = attention.o_proj.weight.to(wide).view(config.hidden_size, heads, -1)
    out_DY = torch.einsum("dhv,hvc->dhc", o_DHV, up_v_HVC).flatten(1).to(dtype)
    latent_queries = None
    if from_latent:
        weight_YL = Packed(torch.cat([absorbed, *queries]))
        latent_queries = LatentQueries(Norm(attention.q_a_layernorm), weight_YL)
    return FusedAttention(
        Norm(in_norm),
        Norm(attention.kv_a_layernorm),
        Packed(torch.cat(parts)),
        _join_biases(parts, biases),
        (*widths, padding),
        latent_queries,
        index_weight,
        index_norm,
        Packed(out_DY),
        attention.o_proj.bias,
    )


def _pair_order(rope: int, *, is_halves: bool) -> Tensor:
    """Return where the channels of neighbouring pairs stand in the weights."""
    if not is_halves:
        return torch.arange(rope)
    return torch.arange(rope).view(2, -1).T.flatten()


def _join_biases(parts: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            part.new_zeros(len(part)) if bias is None else bias
            for part, bias in zip(parts, biases, strict=True)
        ]
    )
