"""open_clip: the losses of its trainer, in one process and over several.

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

NAMED = ("float32", "bfloat16", "float16")


def _clip_on_ranks(image: torch.Tensor, text: torch.Tensor, scale: float | torch.Tensor, **options: bool) -> Any:
    import torch.distributed as dist

    return _losses().ClipLoss(rank=dist.get_rank(), world_size=dist.get_world_size(), **options)(image, text, scale)


@kernel("clip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def clip_gathered(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss` as it is by default: every rank computes the loss of all, and differentiates by its own features."""
    return _clip_on_ranks(image, text, scale)


@kernel("clip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def clip_gathered_with_grad(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss(gather_with_grad=True)`."""
    return _clip_on_ranks(image, text, scale, gather_with_grad=True)


@kernel("clip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def clip_local(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss(local_loss=True)`: every rank computes the loss of its own rows."""
    return _clip_on_ranks(image, text, scale, local_loss=True)


@kernel("clip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def clip_local_with_grad(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """`ClipLoss(local_loss=True, gather_with_grad=True)`."""
    return _clip_on_ranks(image, text, scale, local_loss=True, gather_with_grad=True)


def _siglip_on_ranks(image: Any, text: Any, scale: Any, bias: Any, exchange: str) -> Any:
    import torch.distributed as dist

    loss = _losses().SigLipLoss(rank=dist.get_rank(), world_size=dist.get_world_size(), dist_impl=exchange)
    return loss(image, text, scale, bias)


@kernel("siglip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def siglip_bidir(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss` as it is by default: texts go round both ways."""
    return _siglip_on_ranks(image, text, scale, bias, "bidir")


@kernel("siglip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def siglip_shift(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss(dist_impl="shift")`: texts go round one way."""
    return _siglip_on_ranks(image, text, scale, bias, "shift")


@kernel("siglip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def siglip_reduce(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss(dist_impl="reduce")`."""
    return _siglip_on_ranks(image, text, scale, bias, "reduce")


@kernel("siglip_loss", dtypes=NAMED, requires=("open_clip_torch",), world=2, ranks="mean")
def siglip_gather(
    image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor, bias: float | torch.Tensor
) -> torch.Tensor:
    """`SigLipLoss(dist_impl="gather")`."""
    return _siglip_on_ranks(image, text, scale, bias, "gather")
