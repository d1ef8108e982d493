"""Which elements of an answer are outside: an infinity is right where a right kernel may pass the largest number."""

from __future__ import annotations

import numpy as np
import pytest

from assay.properties.trial import outside
from assay.reference.arithmetic.oracle import Enclosure


@pytest.mark.parametrize(
    ("got", "exact", "bound", "wrong"),
    [
        (np.inf, 60000.0, 6000.0, False),
        (-np.inf, 60000.0, 6000.0, True),
        (np.inf, 60000.0, 5000.0, True),
        (np.inf, 0.0, 4e8, False),
        (-np.inf, 0.0, 4e8, False),  # a difference of large numbers, of either sign
        (-np.inf, 10000.0, 8e4, False),
        (-np.inf, 20000.0, 8e4, True),
        (np.nan, 0.0, 4e8, True),
        (100.0, 0.0, 4e8, False),
    ],
)
def test_overflow_is_right_as_far_as_the_bound_reaches(got: float, exact: float, bound: float, wrong: bool) -> None:
    told, ratio = outside(
        np.array([got], np.float16),
        Enclosure(np.array([exact], np.longdouble), np.zeros(1, np.longdouble)),
        np.array([bound], np.longdouble),
        "float16",
    )
    assert bool(told[0]) == wrong
    assert wrong or ratio[0] <= 1
