"""performer-pytorch: random projections, features and attention of Performer, ported from the JAX code of its paper.

`gaussian_orthogonal_random_matrix` takes no seed and draws from torch's global generator, which is seeded here for the
call and then put back as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("random_projection", dtypes=("float32",), requires=("performer-pytorch",))
def gaussian_orthogonal_random_matrix(r: int, d: int, *, scaling: str = "chi", seed: int) -> torch.Tensor:
    """`gaussian_orthogonal_random_matrix(nb_rows, nb_columns, scaling=0 | 1)`."""
    import torch
    from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix as draw

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return draw(r, d, scaling={"chi": 0, "regularised": 1}[scaling])
