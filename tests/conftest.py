"""One Hypothesis profile for every run, and mpmath's global precision, which nothing here may depend on."""

from __future__ import annotations

from collections.abc import Iterator

import mpmath
import pytest
from hypothesis import settings


settings.register_profile("assay", derandomize=True, deadline=None, print_blob=True, max_examples=60)
settings.load_profile("assay")


@pytest.fixture(autouse=True)
def _mpmath_is_left_alone() -> Iterator[None]:
    before = mpmath.mp.prec
    yield
    assert mpmath.mp.prec == before
