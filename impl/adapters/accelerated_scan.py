"""accelerated-scan: `accelerated_scan.ref.scan(gates, tokens)`, its reference in torch, over [b, channels, t], from 0.

The tree is padded to a power of two with gates of 1. Its Triton and CUDA kernels need a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.adapters._scans import around
from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


@kernel("selective_scan", form="associative", dtypes=("float64", "float32"), requires=("accelerated-scan",))
@around
def ref(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Channels are d and n together; gates and tokens are made contiguous, as it asks."""
    from accelerated_scan.ref import scan

    gates, tokens = (v.flatten(2).mT.contiguous() for v in (a, x))
    return scan(gates, tokens).mT.unflatten(2, a.shape[2:])
