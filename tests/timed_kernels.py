"""An operator of a user's own that says what it costs, and kernels of it of every kind that `assay bench` meets."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch

import assay


def rms_norm(x: Any, weight: Any, *, eps: Any) -> Any:
    xp = assay.array_namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def work(*, t: int, d: int, itemsize: int, backward: bool) -> assay.Work:
    passes = 2 if backward else 1
    return assay.Work(bytes=passes * itemsize * (2 * t * d + d), flops=passes * 4 * t * d)


RMS_NORM = assay.Operator(
    "rms_norm",
    rms_norm,
    inputs=(assay.Tensor("x", "t d"), assay.Tensor("weight", "d")),
    parameters=(assay.Positive("eps", default=1e-6, low=1e-6, high=1e-2),),
    work=work,
    timed={"tiny": assay.Structure(sizes={"t": 1024, "d": 32})},
)

ONLY = ("float32",)


@assay.kernel("rms_norm", dtypes=ONLY)
def right(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@assay.kernel("rms_norm", dtypes=ONLY)
def tenfold(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """The same, computed ten times."""
    for _ in range(9):
        right(x, weight, eps=eps)
    return right(x, weight, eps=eps)


@assay.kernel("rms_norm", dtypes=ONLY, backward="none")
def wrong(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 2 * eps).sqrt() * weight


@assay.kernel("rms_norm", dtypes=ONLY, backward="none")
def no_backward(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    return right(x, weight, eps=eps).detach()


@assay.kernel("rms_norm", dtypes=ONLY)
def crashes(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    if len(x) == 1024:  # longer than any case of a judgement
        os._exit(3)
    return right(x, weight, eps=eps)


@assay.kernel("rms_norm", dtypes=ONLY)
def raises(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    if len(x) == 1024:
        raise RuntimeError("the device\nis on fire")
    return right(x, weight, eps=eps)


CALLS = []


@assay.kernel("rms_norm", dtypes=ONLY)
def tires(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Takes two milliseconds, and gives up at the tenth call: once it is open, within seven samples."""
    time.sleep(0.002)
    CALLS.append(len(x))
    if len(CALLS) > 9:
        raise RuntimeError("too tired")
    return right(x, weight, eps=eps)


@assay.kernel("rms_norm", dtypes=ONLY)
def hangs(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    time.sleep(600)
    return x


@assay.kernel("rms_norm", dtypes=ONLY)
def interrupts(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Where gradients are timed, the user presses Ctrl-C."""
    if len(x) == 1024 and x.requires_grad:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    return right(x, weight, eps=eps)


@assay.kernel("rms_norm", dtypes=ONLY)
def hungry(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Needs 64 MiB for a while."""
    return right(x, weight, eps=eps) + torch.ones(16, 1 << 20).sum() * 0


@assay.kernel("rms_norm", dtypes=ONLY)
def hungry_for_crumbs(x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Needs as much in blocks of 16 KiB, which allocators keep for the next call."""
    crumbs = [torch.ones(1 << 12) for _ in range(1 << 12)]
    return right(x, weight, eps=eps) + sum(crumb[0] for crumb in crumbs) * 0
