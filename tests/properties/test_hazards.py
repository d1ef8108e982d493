"""The ill-conditioned places of state spaces: a kernel that claims the stable form and goes another way is rejected,
and it is said which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from assay.properties import OPERATORS
from assay.properties.emulated import ByHand, computing, going
from assay.properties.judgement import examine
from assay.properties.mutants import Mutant, right
from assay.properties.results import Result
from assay.properties.run import Effort


EFFORT = Effort(examples=24, climb=0, shrink_seconds=0, robustness=0, shares=0, pooled=0)
FORMS = {
    "(exp(z) - 1) / z": ("s4d_kernel", "small", "naive"),
    "Cauchy near a pole": ("s4_kernel", "near poles", "cauchy"),
    "differences of cumulative sums": ("selective_scan", "slow decays", "chunked"),
}
"""Operator, regime in which it shows, and the form that is not claimed."""
AT_EVERY_CHANGE = "Cauchy near a pole"
"""Of the others, kernels in torch are named at every change."""
HAZARDS = {
    ("discretize", "(exp(z) - 1) / z"): "dissipative",
    ("discretize", "naive diagonalisation"): "defective",
    ("ssm_kernel", "naive diagonalisation"): "legs",
    ("s4_kernel", "naive diagonalisation"): "defective",
    ("s4_kernel", "z = -1"): "damped",
}
"""Operator, way, and a regime in which it shows."""
SLOWEST = ("s4_kernel", "naive diagonalisation")


def found(name: str, regime: str, dtype: str, way: ByHand, conventions: dict[str, str]) -> Result:
    """What is said of a kernel that claims the stable form, where the other way shows."""
    operator = replace(OPERATORS[name], regimes={regime: OPERATORS[name].regimes[regime]})
    kernel = Mutant("it", "by hand", "", right(operator, dtype), {"by_hand": way}).kernel()
    only = ("agrees_with_oracle",)
    return examine(operator, kernel, dtype, conventions=conventions, effort=EFFORT, only=only).results[0]


@pytest.mark.parametrize(
    "place", [p if p == AT_EVERY_CHANGE else pytest.param(p, marks=pytest.mark.nightly) for p in FORMS]
)
def test_a_form_that_loses_digits_is_named(place: str) -> None:
    name, regime, form = FORMS[place]
    result = found(name, regime, "float32", computing(form), {})
    assert result.verdict == "fail"
    assert ("form", form) in {(f.kind, f.name) for f in result.diagnosis}


def test_every_way_that_no_bound_covers_is_tried() -> None:
    assert {(name, way) for name, operator in OPERATORS.items() for way in operator.hazards} == set(HAZARDS)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("name", "way"), [h if h != SLOWEST else pytest.param(*h, marks=pytest.mark.nightly) for h in HAZARDS]
)
def test_a_way_that_no_bound_covers_is_named(name: str, way: str, dtype: str) -> None:
    conventions = {"method": "zoh"} if name == "discretize" else {}
    result = found(name, HAZARDS[name, way], dtype, going(OPERATORS[name].hazards[way]), conventions)
    assert result.verdict == "fail"
    assert ("hazard", way) in {(f.kind, f.name) for f in result.diagnosis}


def test_another_mistake_is_not_taken_for_one() -> None:
    operator = OPERATORS["discretize"]
    base = right(operator, "float32")
    kernel = Mutant("it", "write", "", base, {"write": lambda y, memory, arguments: y * (1 + 2.0**-10)}).kernel()
    (result,) = examine(operator, kernel, "float32", effort=EFFORT, only=("agrees_with_oracle",)).results
    assert result.verdict == "fail"
    assert not {f.name for f in result.diagnosis} & set(operator.hazards)
