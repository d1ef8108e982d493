"""Random projections in torch, for the random features of Performer.

Numbers are drawn on the CPU, by a generator of their own, so that a seed gives the same rows on every device, and in
float32 at least; torch's global generator is left alone.

Axes: r random feature, d channel.

Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, section 2.4 and theorem 1. The
signs: F. Mezzadri, How to generate random matrices from the classical compact groups, arXiv:math-ph/0609050.
"""

from __future__ import annotations

import torch

from assay.impl.kernel import kernel


SCALINGS = ("chi", "regularised")


@kernel("random_projection", dtypes=("float64", "float32", "bfloat16", "float16"))
def random_projection(
    r: int,
    d: int,
    *,
    orthogonal: bool = True,
    scaling: str = "chi",
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """projection[r, d]: rows with uniform directions, in independent blocks of d orthogonal ones if `orthogonal`.

    `scaling` "chi": lengths as those of d normal numbers, so that each row is N(0, I); "regularised": all sqrt(d).

    Raises: ValueError for an unknown scaling, or no channel.

    >>> random_projection(3, 4, seed=0).shape
    torch.Size([3, 4])
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
    if d < 1 or r < 0:
        raise ValueError(f"there is no projection of {r} rows in {d} channels")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    wide = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=wide)

    if orthogonal:
        q, upper = torch.linalg.qr(normal(-(-r // d), d, d))
        # QR alone leaves signs that depend on Q: with these the diagonal of R is positive, and Q is Haar.
        signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(wide)
        rows = (q * signs[:, None, :]).mT.reshape(-1, d)[:r]
    else:
        rows = torch.nn.functional.normalize(normal(r, d), dim=-1)
    lengths = normal(r, d).norm(dim=-1, keepdim=True) if scaling == "chi" else torch.full((), d, dtype=wide).sqrt()
    projection: torch.Tensor = (rows * lengths).to(dtype=dtype, device=device)
    return projection
