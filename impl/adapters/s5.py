"""s5-pytorch: `s5.init.make_NPLR_HiPPO(n)`, LegS in NumPy's float64, whatever the default dtype is.

It returns A, the P of the normal part A + P P^T, and B; the adapter hands over A and B.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel(
    "hippo_matrices",
    form="roots",
    dtypes=("float64",),
    conventions={"measure": "legs", "window": "1", "sign": "stable"},
    backward="none",
    requires=("s5-pytorch",),
)
def make_NPLR_HiPPO(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    from s5.init import make_NPLR_HiPPO

    A, _, B = make_NPLR_HiPPO(n)
    return torch.from_numpy(A), torch.from_numpy(B)
