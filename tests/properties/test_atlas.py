"""The error atlas counts every element that was compared, once, and in its class."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from assay.impl.kernel import Claims
from assay.journal import recorded, restored
from assay.kernels import keywords, resolve
from assay.properties.atlas import LEAST, WHAT, Class
from assay.properties.contract import Operator, Tensor
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import Effort
from assay.runner import TorchSubject


KERNELS = Path(__file__).parent.parent / "kernels.py"
EFFORT = Effort(examples=8, shrink_seconds=0.1, climb=4, pooled=0)
ONLY = ("agrees_with_oracle", "gradients_agree")
SCALED = Operator("scaled", lambda x, weight: x * weight, (Tensor("x", "t d"), Tensor("weight", "d")))


@cache
def judged(name: str) -> Examination:
    (kernel,) = resolve(f"rope={KERNELS}:{name}")
    return examine(kernel.operator, kernel.subject(), "float32", effort=EFFORT, only=ONLY)


def scaled(wrong: bool) -> Examination:
    """x * weight, in which row 5 of x is forgotten if it is wrong."""

    def kernel(x, weight):  # type: ignore[no-untyped-def]
        out = x * weight
        out[..., 5:6, :] *= 1 - wrong
        return out

    subject = TorchSubject("k", kernel, Claims("scaled", backward="none"), keywords(SCALED))
    return examine(SCALED, subject, "float32", effort=EFFORT)


def curve(found: Examination, what: str, against: str) -> tuple[Class, ...]:
    (one,) = (c for c in found.atlas if (c.what, c.against) == (what, against))
    return one.classes


@pytest.mark.parametrize("name", ["right", "off_by_one"])
def test_every_element_is_counted_against_everything_and_the_worst_is_the_headroom(name: str) -> None:
    found = judged(name)
    assert {(c.what, c.against) for c in found.atlas} == {(what, against) for what in WHAT for against in LEAST}
    for what in WHAT:
        curves = [curve(found, what, against) for against in LEAST]
        assert len({sum(c.elements for c in classes) for classes in curves}) == 1
        headroom = next(
            r.headroom for r in found.results if r.property.startswith({"outputs": "agrees"}.get(what, "grad"))
        )
        assert headroom is not None
        assert {max(c.worst for c in classes) for classes in curves} == {float(f"{headroom:.4g}")}
        for classes in curves:
            assert all(0 <= c.middle <= c.worst for c in classes)
            assert [c.low for c in classes] == sorted({c.low for c in classes})


def test_classes_are_octaves_of_positions_and_sizes_and_decades_of_magnitudes() -> None:
    found = judged("right")
    for against, logarithm in (("position", math.log2), ("size", math.log2), ("magnitude", math.log10)):
        lows = [c.low for c in curve(found, "outputs", against)]
        assert all(logarithm(low).is_integer() for low in lows if low)
    assert max(c.low for c in curve(found, "outputs", "position")) > 1000  # the argument, and not the row
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    assert all(10 * c.low > tiny for c in curve(found, "outputs", "magnitude") if c.low)


def test_without_an_integer_argument_the_position_is_the_row() -> None:
    classes = curve(scaled(wrong=True), "outputs", "position")
    assert {c.low for c in classes} >= {0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0}
    assert [c.low for c in classes if c.worst > 1] == [4.0]
    assert all(c.worst <= 1 for c in curve(scaled(wrong=False), "outputs", "position"))


def test_what_was_not_compared_has_no_atlas() -> None:
    assert judged("raises").atlas == ()


@pytest.mark.parametrize("name", ["off_by_one", "right"])
def test_the_journal_keeps_the_atlas_the_element_and_the_values(name: str) -> None:
    found = judged(name)
    again = restored(found.kernel, json.loads(json.dumps(recorded(found))))
    assert again.atlas == found.atlas
    assert [(r.miss, r.values) for r in again.results] == [(r.miss, r.values) for r in found.results]
    assert any(r.values for r in found.results) == (name == "off_by_one")


def test_a_small_case_is_told_with_its_numbers() -> None:
    first = judged("off_by_one").results[0]
    assert first.case is not None
    assert set(first.values) == {n for n, v in first.case.arguments.items() if isinstance(v, np.ndarray)}
    assert str(first.case.arguments["position"][0]) in first.values["position"]
