"""Plots are files that can be opened, and hold every kernel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from assay.bench import Timed
from assay.history import steps
from assay.kernels import resolve
from assay.plots import plot_history, plot_timed
from assay.properties.contract import Work
from assay.roofline import Rates
from assay.timing import Setup
from tests.ci.test_history import record


def drawn(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_timings_are_drawn_with_their_names(tmp_path: Path) -> None:
    found = []
    for i, name in enumerate(("rope", "rope_table")):
        (kernel,) = resolve(f"rope=assay.impl.rope:{name}")
        setup = Setup("rope", "short", "float32", False, 1)
        seconds = tuple(1e-3 * (1 + i) * np.linspace(0.9, 1.1, 9))
        found.append(Timed(kernel, setup, seconds, 1, "loop", Work(4000, 10), Rates(1e7, 1e9, 1e9), {}, None))
    plot_timed(tmp_path / "speed.png", found)
    width, height = drawn(tmp_path / "speed.png")
    assert width > 600
    assert height > 400


def test_histories_are_drawn_with_their_steps(tmp_path: Path) -> None:
    one = [record(i, 0.0) for i in range(10)] + [record(i, math.log(1.25)) for i in range(10, 20)]
    other = [record(i, 0.0) for i in range(8)]
    plot_history(tmp_path / "history.png", [(one, steps(one)), (other, steps(other)), (other, [])])
    assert drawn(tmp_path / "history.png")[0] > 600
