"""The roofline: what a case would take if only its least work were done, as fast as this machine did the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from assay import anchors
from assay.properties.contract import Work
from assay.properties.drawing import DTYPES
from assay.timing import Inputs, Setup


@dataclass(frozen=True)
class Rates:
    """What the machine did in the same rounds, per second."""

    bytes: float
    flops: float
    exponentials: float

    def roof(self, work: Work) -> tuple[float, str]:
        """The least seconds that the work takes, and which part of it takes them."""
        needed = {
            "bytes": work.bytes / self.bytes,
            "flops": work.flops / self.flops,
            "exponentials": work.exponentials / self.exponentials,
        }
        limit = max(needed, key=lambda name: needed[name])
        return needed[limit], limit


def anchors_of(inputs: Inputs, setup: Setup, work: Work) -> dict[str, dict[str, Any]]:
    """What a stopwatch is told to open the anchors with, by name. They are timed by turns with the kernels."""
    words = _copied(work) // 8
    square = np.linspace(-1, 1, anchors.PRODUCT**2).reshape(anchors.PRODUCT, -1).astype(DTYPES[setup.dtype])
    line = np.linspace(-1, 1, anchors.SWEEP, dtype=np.float32)
    arrays = {
        "copy": {"source": np.ones(words, np.float32), "target": np.zeros(words, np.float32)},
        "product": {"a": square, "b": square, "out": np.zeros_like(square)},
        "sweep": {"x": line, "out": np.zeros_like(line)},
    }
    return {name: inputs.anchor(name, given) for name, given in arrays.items()}


def rates_of(samples: Mapping[str, Sequence[float]], work: Work) -> Rates:
    """The rates of the anchors, from their seconds per call."""
    return Rates(
        bytes=_copied(work) / median(samples["copy"]),
        flops=2 * anchors.PRODUCT**3 / median(samples["product"]),
        exponentials=anchors.SWEEP / median(samples["sweep"]),
    )


def _copied(work: Work) -> int:
    """Bytes that the copy moves, half of them in: whole numbers of float32."""
    return 8 * max(1, work.bytes // 8)
