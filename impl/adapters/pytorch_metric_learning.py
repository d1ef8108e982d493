"""pytorch-metric-learning: `NTXentLoss` between two sets of embeddings, which is one direction of CLIP's loss.

Each set is the anchors once, and the two losses are averaged. The temperature divides. The distance is the inner
product of the embeddings as they are; by itself the package would take cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


EVERY = ("float64", "float32", "bfloat16", "float16")


@kernel("clip_loss", dtypes=EVERY, requires=("pytorch-metric-learning",))
def ntxent(image: torch.Tensor, text: torch.Tensor, *, scale: float | torch.Tensor) -> torch.Tensor:
    """Labels number the pairs; those of the references are another tensor, without which the diagonal is left out.

    Raises: NotImplementedError for a single pair, where the package returns a zero that depends on nothing.
    """
    import torch
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import NTXentLoss

    n = len(image)
    if n == 1:
        raise NotImplementedError("without negatives the loss is a constant")
    labels = torch.arange(n)
    loss = NTXentLoss(temperature=1 / scale, distance=DotProductSimilarity(normalize_embeddings=False))
    return (
        loss(image, labels, ref_emb=text, ref_labels=labels.clone())
        + loss(text, labels, ref_emb=image, ref_labels=labels.clone())
    ) / 2
