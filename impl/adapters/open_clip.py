"""open_clip: the losses of its trainer, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


EVERY = ("float64", "float32", "bfloat16", "float16")


@kernel("clip_loss", dtypes=EVERY, requires=("open_clip_torch",))
def clip(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss`: logits of images and of texts each by a product of their own, in the dtype of the features."""
    from open_clip.loss import ClipLoss

    return ClipLoss()(image, text, scale)


@kernel("siglip_loss", dtypes=EVERY, requires=("open_clip_torch",))
def siglip(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss`: a matrix of labels, in the dtype of the features."""
    from open_clip.loss import SigLipLoss

    return SigLipLoss()(image, text, scale, bias)
