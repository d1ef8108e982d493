"""What must hold: contracts, bounds, properties, diagnosis. Kernels are received as arguments, never imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from assay.properties.contract import Operator


MODULES = {
    "rope": "rope",
    "softmax_attention": "attention",
    "unnormalized_attention": "linear_attention",
    "linear_attention": "linear_attention",
    "random_features": "performer",
    "random_projection": "projection",
    "performer_attention": "performer",
    "clip_loss": "contrastive",
    "siglip_loss": "contrastive",
    "selective_scan": "selective_scan",
    "discretize": "discretize",
    "hippo_matrices": "hippo",
    "hippo_project": "hippo_project",
    "ssm_scan": "state_space",
    "ssm_kernel": "state_space",
    "fft_convolve": "convolution",
    "s4d_kernel": "s4",
    "s4_kernel": "dplr",
}
"""The module of each operator's contract, in which it is called as the operator, in capitals."""


class _Operators(Mapping[str, "Operator"]):
    """The operators of assay, by name. A contract is imported when it is first asked for: each takes some hundredths of
    a second, with what it needs, and most questions are about one."""

    def __getitem__(self, name: str) -> Operator:
        module = importlib.import_module(f"{__name__}.{MODULES[name]}")
        operator: Operator = getattr(module, name.upper())
        return operator

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)

    def __contains__(self, name: object) -> bool:
        return name in MODULES


OPERATORS = _Operators()
