"""What surrounds a recurrence, for packages that offer h_k = a_k h_{k-1} + x_k alone and leave the rest to the user."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def around(scan: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., object]:
    """The selective scan from a state of 0, named as `scan`: (a[b, t, d, n], x[b, t, d, n]) -> h[b, t, d, n]."""

    def selective_scan(
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        *,
        D: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps = delta.mT[..., None]
        h = scan((steps * A).exp(), steps * B.mT[:, :, None] * u.mT[..., None])
        y = (h @ C.mT[..., None])[..., 0].mT
        return y if D is None else y + D[:, None] * u, h[:, -1]

    update_wrapper(selective_scan, scan, ("__module__", "__name__", "__qualname__", "__doc__"), ())
    del selective_scan.__wrapped__  # type: ignore[attr-defined]  # it takes other arguments
    return selective_scan
