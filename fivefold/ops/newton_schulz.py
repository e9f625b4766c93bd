"""Orthogonalise a batch of matrices by Newton-Schulz iteration: the core of Muon.

With the singular value decomposition G = U S V^T, the polar factor U V^T keeps the directions of a
gradient and sets every singular value to one. Five odd polynomials of degree five,
X <- aX + b(XX^T)X + c(XX^T)^2 X, approximate it with matrix products alone, which accelerators and
low precision like.

Shapes here: G blocks of M rows and N columns. Surprise: five steps do not converge. Singular values
end near one, within 0.68 to 1.13 (`glm45`) or 0.85 to 1.12 (`polar_express`) on Gaussian matrices,
and those below a thousandth of the norm stay small; training does not mind.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_POLAR_EXPRESS_SAFETY = 1.05
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)

COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "polar_express": tuple(
        (a / _POLAR_EXPRESS_SAFETY, b / _POLAR_EXPRESS_SAFETY**3, c / _POLAR_EXPRESS_SAFETY**5)
        for a, b, c in _POLAR_EXPRESS
    ),
    "glm45": ((3.4445, -4.7750, 2.0315),) * 5,
}
"""Polynomials by name: Polar Express (arXiv 2505.16932), its argument divided by 1.05 so that
rounding cannot push a singular value out of the interval of convergence; and the constant ones of
Keller Jordan's Muon, five steps as GLM-4.5 uses (arXiv 2508.06471, section 2.4)."""

SMALLEST_NORM = 1e-7
"""Blocks with a smaller Frobenius norm are divided by this instead, as torch.optim.Muon does: a
block without gradient stays zero, and one with next to none is not blown up to a full update."""


def reference(blocks_GMN: Tensor) -> Tensor:
    """Return the exact polar factors U V^T of full-rank blocks, by singular value decomposition."""
    left_GMK, _, right_GKN = torch.linalg.svd(blocks_GMN, full_matrices=False)
    return left_GMK @ right_GKN


def orthogonalise(
    blocks_GMN: Tensor, coefficients: Sequence[tuple[float, float, float]], dtype: torch.dtype
) -> Tensor:
    """Return approximate polar factors [G, M, N] of the blocks, in the blocks' dtype.

    Norms are taken in the blocks' dtype (give fp32), matrix products run in `dtype`. Every block is
    scaled by its own norm, so that a batch gives what its blocks give alone. The result is a tensor
    of its own; the blocks are not written.
    """
    is_tall = blocks_GMN.shape[-2] > blocks_GMN.shape[-1]
    norm_G11 = torch.linalg.vector_norm(blocks_GMN, dim=(-2, -1), keepdim=True)
    scaled_GMN = (blocks_GMN / norm_G11.clamp_min(SMALLEST_NORM)).to(dtype)
    # The Gram matrix X X^T costs least on the short side, here called R; S is the long one.
    result_GRS = _iterate((scaled_GMN.mT if is_tall else scaled_GMN).contiguous(), coefficients)
    return (result_GRS.mT if is_tall else result_GRS).to(blocks_GMN.dtype)


def _iterate(x_GRS: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Apply the polynomials in turn, between four buffers; `x_GRS` is one of them."""
    spare_GRS = torch.empty_like(x_GRS)
    gram_GRR = x_GRS.new_empty(x_GRS.shape[0], x_GRS.shape[1], x_GRS.shape[1])
    mixed_GRR = torch.empty_like(gram_GRR)
    for a, b, c in coefficients:
        torch.bmm(x_GRS, x_GRS.mT, out=gram_GRR)
        torch.baddbmm(gram_GRR, gram_GRR, gram_GRR, beta=b, alpha=c, out=mixed_GRR)
        torch.baddbmm(x_GRS, mixed_GRR, x_GRS, beta=a, out=spare_GRS)
        x_GRS, spare_GRS = spare_GRS, x_GRS
    return x_GRS
