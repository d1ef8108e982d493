"""open_clip: the losses of its trainer, in one process.

They stand in a file that needs torch alone, and it is loaded by itself: the package as a whole wants torchvision.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


EVERY = ("float64", "float32", "bfloat16", "float16")


@cache
def _losses() -> Any:
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@kernel("clip_loss", dtypes=EVERY, requires=("open_clip_torch",))
def clip(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss`: logits of images and of texts each by a product of their own, in the dtype of the features."""
    return _losses().ClipLoss()(image, text, scale)


@kernel("siglip_loss", dtypes=EVERY, requires=("open_clip_torch",))
def siglip(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss`: a matrix of labels, in the dtype of the features."""
    return _losses().SigLipLoss()(image, text, scale, bias)


# Over the ranks of torch.distributed. Each returns its own loss; DistributedDataParallel averages the gradients. -----


def clip_on_ranks(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, local_loss: bool, gather_with_grad: bool
) -> torch.Tensor:
    """`ClipLoss` of this rank's features, all ranks having as many."""
    import torch.distributed as dist

    loss = _losses().ClipLoss(local_loss, gather_with_grad, rank=dist.get_rank(), world_size=dist.get_world_size())
    return loss(image, text, scale)


def siglip_on_ranks(
    image: torch.Tensor,
    text: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    bias: float | torch.Tensor,
    exchange: str,
) -> torch.Tensor:
    """`SigLipLoss` likewise; `exchange` is one of its ways, "bidir", "shift", "reduce" or "gather"."""
    import torch.distributed as dist

    loss = _losses().SigLipLoss(rank=dist.get_rank(), world_size=dist.get_world_size(), dist_impl=exchange)
    return loss(image, text, scale, bias)
