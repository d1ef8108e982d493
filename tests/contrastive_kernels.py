"""Contrastive losses of the kind that people write, right and wrong, for the suite to judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


Number = float | Tensor
Kernel = Callable[..., Tensor]


def widened(*features: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in features)


def scores(image: Tensor, text: Tensor, scale: Number) -> Tensor:
    x, y = widened(image, text)
    return scale * (x @ y.mT)


def identity(s: Tensor) -> Tensor:
    return torch.eye(len(s), dtype=torch.bool)


# CLIP, right ----------------------------------------------------------------------------------------------------------


def cross_entropy(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    s = scores(image, text, scale)
    labels = torch.arange(len(s))
    return (functional.cross_entropy(s, labels) + functional.cross_entropy(s.mT, labels)) / 2


def less_diagonal(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    """logsumexp less the diagonal; the scale on one tower."""
    x, y = widened(image, text)
    s = (scale * x) @ y.mT
    return ((s.logsumexp(1) - s.diagonal()) + (s.logsumexp(0) - s.diagonal())).mean() / 2


def log_softmax(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    x, y = widened(image, text)
    s = x @ (scale * y).mT
    return -(s.log_softmax(1).diagonal().sum() + s.log_softmax(0).diagonal().sum()) / (2 * len(s))


def two_products(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    """Logits of each direction by a product of their own; every row with its share of the mean."""
    x, y = widened(image, text)
    share = 1 / (2 * len(x))
    losses = [(s.logsumexp(1) - s.diagonal()) * share for s in ((scale * x) @ y.mT, (scale * y) @ x.mT)]
    return torch.cat(losses).sum()


def powers_of_two(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    s = scores(image, text, scale)
    bits = s * 1.4426950408889634
    losses = []
    for t in (bits, bits.mT):
        top = t.detach().amax(1)
        losses.append((top + (t - top[:, None]).exp2().sum(1).log2()) * 0.6931471805599453 - s.diagonal())
    return (losses[0].mean() + losses[1].mean()) / 2


def blocked(width: int, merge: bool) -> Kernel:
    """Columns in blocks: a running maximum and sum, or log-sum-exps that are merged."""

    def of_rows(s: Tensor) -> Tensor:
        log = s.new_full((len(s),), -torch.inf)
        top, total = log, torch.zeros_like(log)
        for part in s.split(width, dim=1):
            if merge:
                log = torch.logaddexp(log, part.logsumexp(1)) if log.isfinite().all() else part.logsumexp(1)
            else:
                high = torch.maximum(top, part.detach().amax(1))
                total = total * (top - high).exp() + (part - high[:, None]).exp().sum(1)
                top = high
        return (log if merge else top + total.log()) - s.diagonal()

    def kernel(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
        s = scores(image, text, scale)
        return (of_rows(s).mean() + of_rows(s.mT).mean()) / 2

    return kernel


class ByHand(torch.autograd.Function):
    """Gradients from stored log-sum-exps; those of logits are kept in the dtype of the features."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        s = scores(image, text, scale)
        logs = s.logsumexp(1), s.logsumexp(0)
        ctx.save_for_backward(image, text, scale, *logs)
        return (logs[0] + logs[1] - 2 * s.diagonal()).mean() / 2

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        image, text, scale, rows, columns = ctx.saved_tensors
        x, y = widened(image, text)
        s = scores(image, text, scale)
        g = (s - rows[:, None]).exp() + (s - columns).exp() - 2 * torch.eye(len(s), dtype=s.dtype)
        g = g.to(image.dtype).to(s.dtype)
        share = cotangents[0] / (2 * len(s))
        towers = (share * scale * (g @ y)).to(image.dtype), (share * scale * (g.mT @ x)).to(text.dtype)
        return (*towers, (share * (g @ y * x).sum()).to(scale.dtype))


def by_hand(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    return ByHand.apply(image, text, torch.as_tensor(scale))  # type: ignore[no-any-return, no-untyped-call]


def double_clip(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    """In float64, rounded once; several positives."""
    s = scale * (image.double() @ text.double().mT)
    return (s.logsumexp(1) + s.logsumexp(0) - 2 * s.diagonal()).mean().div(2).to(widened(image)[0].dtype)


def with_positives(image: Tensor, text: Tensor, *, scale: Number, positives: Tensor | None = None) -> Tensor:
    s = scores(image, text, scale)
    own = identity(s) if positives is None else positives
    losses = []
    for t, mine in ((s, own), (s.mT, own.mT)):
        target = mine.to(s.dtype) / mine.sum(1, keepdim=True)
        losses.append(t.logsumexp(1) - (target * t).sum(1))
    return (losses[0].mean() + losses[1].mean()) / 2


CLIP: dict[str, tuple[Kernel, str | None]] = {
    "cross_entropy": (cross_entropy, "logsumexp"),
    "less_diagonal": (less_diagonal, "logsumexp"),
    "log_softmax": (log_softmax, "logsumexp"),
    "two_products": (two_products, "logsumexp"),
    "powers_of_two": (powers_of_two, "logsumexp"),
    "blocked_3": (blocked(3, merge=False), "online"),
    "blocked_64": (blocked(64, merge=False), "online"),
    "merged_1": (blocked(1, merge=True), "merged"),
    "merged_16": (blocked(16, merge=True), "merged"),
    "by_hand": (by_hand, "logsumexp"),
    "double": (double_clip, None),
    "with_positives": (with_positives, "logsumexp"),
}
"""Right kernels, with the form that each claims."""


# SigLIP, right --------------------------------------------------------------------------------------------------------


def log_sigmoid(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    x = scores(image, text, scale) + bias
    return -functional.logsigmoid((2 * identity(x) - 1.0) * x).sum() / len(x)


def softplus(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    a, b = widened(image, text)
    x = (scale * a) @ b.mT + bias
    return functional.softplus(torch.where(identity(x), -x, x), threshold=40).sum() / len(x)


def logaddexp(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    x = scores(image, text, scale) + bias
    y = torch.where(identity(x), -x, x)
    return torch.logaddexp(y, torch.zeros_like(y)).sum(1).mean()


def binary_cross_entropy(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    x = scores(image, text, scale) + bias
    total = functional.binary_cross_entropy_with_logits(x, identity(x).to(x.dtype), reduction="sum")
    return total / len(x)


def less_positives(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    x = scores(image, text, scale) + bias
    return (functional.softplus(x, threshold=40).sum() - x.diagonal().sum()) / len(x)


def tiles(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    """Tiles of 16 x 5, last first."""
    a, b = widened(image, text)
    total = a.new_zeros(())
    for i in reversed(torch.arange(len(a)).split(16)):
        for j in torch.arange(len(b)).split(5):
            x = scale * (a[i] @ b[j].mT) + bias
            total = total - functional.logsigmoid(torch.where(i[:, None] == j, x, -x)).sum()
    return total / len(a)


class OnePass(torch.autograd.Function):
    """Loss and gradients together; those of logits, over n, in the dtype of the features."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        a, b = widened(image, text)
        dot = a @ b.mT
        x = scale * dot + bias
        y = torch.where(identity(x), -x, x)
        small = (-y.abs()).exp()
        sigmoid = torch.where(y >= 0, 1, small) / (1 + small)
        g = torch.where(identity(x), -sigmoid, sigmoid) / len(x)
        kept = g.to(image.dtype).to(g.dtype)
        ctx.dtypes = image.dtype, text.dtype, scale.dtype, bias.dtype
        ctx.save_for_backward(scale * (kept @ b), scale * (kept.mT @ a), (g * dot).sum(), g.sum())
        return (y.clamp(min=0) + (1 + small).log()).sum() / len(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return tuple((cotangents[0] * g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))


def one_pass(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
    return OnePass.apply(image, text, torch.as_tensor(scale), torch.as_tensor(bias))  # type: ignore[no-any-return, no-untyped-call]


def double_siglip(
    image: Tensor, text: Tensor, *, scale: Number, bias: Number, positives: Tensor | None = None
) -> Tensor:
    x = scale * (image.double() @ text.double().mT) + bias
    own = identity(x) if positives is None else positives
    return (-functional.logsigmoid(torch.where(own, x, -x)).sum() / len(x)).to(widened(image)[0].dtype)


SIGLIP: dict[str, tuple[Kernel, str | None]] = {
    "log_sigmoid": (log_sigmoid, "log_sigmoid"),
    "softplus": (softplus, "log_sigmoid"),
    "logaddexp": (logaddexp, "log_sigmoid"),
    "binary_cross_entropy": (binary_cross_entropy, "subtracted"),
    "less_positives": (less_positives, "subtracted"),
    "tiles": (tiles, "log_sigmoid"),
    "one_pass": (one_pass, "logarithm"),
    "double": (double_siglip, None),
}


# Wrong ----------------------------------------------------------------------------------------------------------------


def clip_with(
    labels: Callable[[int], Tensor] = torch.arange,
    c: Callable[[Number], Number] = lambda c: c,
    change: Callable[[Tensor, int], Tensor] = lambda loss, n: loss,
    features: Callable[[Tensor], Tensor] = lambda x: x,
    directions: tuple[bool, ...] = (False, True),
    reduction: str = "mean",
) -> Kernel:
    """A right kernel with one thing changed."""

    def kernel(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
        s = scores(features(image), features(text), c(scale))
        n = len(s)
        losses = [functional.cross_entropy(s.mT if t else s, labels(n), reduction=reduction) for t in directions]
        return change(sum(losses, s.new_zeros(())) / len(losses), n)

    return kernel


def without_diagonal(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    s = scores(image, text, scale)
    rest = s.masked_fill(identity(s), -torch.inf) if len(s) > 1 else s
    return ((rest.logsumexp(1) - s.diagonal()) + (rest.logsumexp(0) - s.diagonal())).mean() / 2


def unshifted(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    s = scores(image, text, scale)
    return (s.exp().sum(1).log() + s.exp().sum(0).log() - 2 * s.diagonal()).mean() / 2


def eps_in_logarithm(image: Tensor, text: Tensor, *, scale: Number) -> Tensor:
    s = scores(image, text, scale)
    return -((s.softmax(1).diagonal() + 1e-6).log() + (s.softmax(0).diagonal() + 1e-6).log()).mean() / 2


def detached(scale: Number) -> Number:
    return scale.detach() if isinstance(scale, Tensor) else scale


def exponential(scale: Number) -> Number:
    return torch.as_tensor(scale).exp()


def unit(x: Tensor) -> Tensor:
    return functional.normalize(widened(x)[0], dim=-1)


WRONG_CLIP: dict[str, tuple[Kernel, tuple[str, str] | None]] = {
    "labels_shifted": (clip_with(lambda n: (torch.arange(n) + 1) % n), ("slip", "labels_shifted_by_one")),
    "one_direction": (clip_with(directions=(False,)), ("convention", "directions=image")),
    "other_direction": (clip_with(directions=(True,)), ("convention", "directions=text")),
    "not_halved": (clip_with(change=lambda loss, n: 2 * loss), ("convention", "directions=summed")),
    "sum": (clip_with(reduction="sum"), ("convention", "normalisation=sum")),
    "divided_twice": (clip_with(change=lambda loss, n: loss / n), ("slip", "divided_by_n_again")),
    "without_diagonal": (without_diagonal, ("slip", "positives_missing_from_denominator")),
    "logarithm": (clip_with(c=exponential), ("slip", "scale_as_logarithm")),
    "temperature": (clip_with(c=lambda c: 1 / c), ("parameter", "scale")),
    "normalised": (clip_with(features=unit), ("slip", "features_normalised")),
    "unshifted": (unshifted, None),
    "eps": (eps_in_logarithm, None),
    "scale_has_no_gradient": (clip_with(c=detached), None),
}
"""Wrong kernels, with what the diagnosis has to say first."""


def siglip_with(
    bias_of: Callable[[Number], Number] = lambda b: b,
    c: Callable[[Number], Number] = lambda c: c,
    loss: Callable[[Tensor, Tensor], Tensor] = lambda x, own: -functional.logsigmoid(torch.where(own, x, -x)),
    change: Callable[[Tensor, int], Tensor] = lambda total, n: total / n,
    own: Callable[[Tensor], Tensor] = identity,
) -> Kernel:
    """A right kernel with one thing changed."""

    def kernel(image: Tensor, text: Tensor, *, scale: Number, bias: Number) -> Tensor:
        x = scores(image, text, c(scale)) + bias_of(bias)
        return change(loss(x, own(x)).sum(), len(x))

    return kernel


def naive(x: Tensor, own: Tensor) -> Tensor:
    return -torch.where(own, x, -x).sigmoid().log()


def kinked(x: Tensor, own: Tensor) -> Tensor:
    """Its value is right; at 0 its derivative is 0 or 1 instead of 1/2."""
    y = torch.where(own, -x, x)
    return y.clamp(min=0) + torch.log1p((-y.abs()).exp())


WRONG_SIGLIP: dict[str, tuple[Kernel, tuple[str, str] | None]] = {
    "labels_shifted": (siglip_with(own=lambda x: identity(x).roll(1, 1)), ("slip", "labels_shifted_by_one")),
    "bias_missing": (siglip_with(bias_of=lambda b: 0.0), ("slip", "bias_missing")),
    "bias_subtracted": (siglip_with(bias_of=lambda b: -b), ("slip", "bias_subtracted")),
    "mean_of_pairs": (siglip_with(change=lambda total, n: total / n**2), ("convention", "normalisation=n*n")),
    "sum": (siglip_with(change=lambda total, n: total), ("convention", "normalisation=sum")),
    "logarithm": (siglip_with(c=exponential), ("slip", "scale_as_logarithm")),
    "negatives_missing": (
        siglip_with(loss=lambda x, own: -functional.logsigmoid(x.diagonal())),
        ("slip", "negatives_missing"),
    ),
    "naive": (siglip_with(loss=naive), None),
    "kinked": (siglip_with(loss=kinked), None),
    "scale_has_no_gradient": (siglip_with(c=detached), None),
    "bias_has_no_gradient": (siglip_with(bias_of=detached), None),
}
