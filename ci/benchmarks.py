"""The one test that `assay bench` has pytest-benchmark run, once for each kernel and setup; `ci/bench.py` fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest


if TYPE_CHECKING:
    from assay.bench import Item


def test_speed(benchmark: Any, item: Item) -> None:
    if not item.hand_over(benchmark):
        pytest.skip("not timed")
