"""A signal, and what 8, 32 and 64 coefficients remember of it: `python -m tests.reconstruction docs/hippo_project.svg`
draws it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.impl.hippo_project import hippo_project


Values = np.ndarray[Any, Any]
SAMPLES = 1024
COEFFICIENTS = (8, 32, 64)


def signal() -> Values:
    """Slow, then faster, with a jump."""
    s = (np.arange(SAMPLES) + 0.5) / SAMPLES
    return np.sin(2 * np.pi * (1 + 11 * s) * s) + 0.5 * (s > 0.6)


def remembered(n: int) -> Values:
    """The last c[n]: of the whole history."""
    return np.asarray(hippo_project(torch.from_numpy(signal()), n, method="zoh")[-1].numpy())


def reconstruction(c: Values) -> Values:
    """sum_n c_n sqrt(2n+1) P_n(2 s - 1), in the middle of each sample."""
    s = (np.arange(SAMPLES) + 0.5) / SAMPLES
    return np.asarray(np.polynomial.legendre.legval(2 * s - 1, c * np.sqrt(2 * np.arange(len(c)) + 1)))


def draw(path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    given, every = signal(), slice(None, None, 3)
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, n in zip(figure.subplots(1, 3, sharey=True), COEFFICIENTS, strict=True):
        c = remembered(n)
        lost = np.sqrt(max(np.mean(given**2) - np.sum(c**2), 0.0))
        axes.plot(np.arange(SAMPLES)[every], given[every], color="0.6", label="signal")
        axes.plot(np.arange(SAMPLES)[every], reconstruction(c)[every], color="C3", linewidth=1, label="reconstruction")
        axes.set(title=f"{n} coefficients, {lost:.1g} lost (rms)", xlabel="sample")
    axes.legend(fontsize=7, loc="upper left")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assay"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
