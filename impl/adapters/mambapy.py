"""mambapy: `mambapy.pscan.pscan(A, X)`, the parallel scan of h_k = A_k h_{k-1} + X_k over [b, t, d, n], from 0.

The length is padded to a power of two; sweeps are in place on copies, the backward is written by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._scans import around
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("selective_scan", form="associative", dtypes=("float64", "float32"), requires=("mambapy",))
@around
def pscan(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """With what `MambaBlock.selective_scan` does around it."""
    from mambapy.pscan import pscan as scan

    return scan(a, x)
