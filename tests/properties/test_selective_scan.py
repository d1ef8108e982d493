"""The contract of the selective scan: right kernels pass, wrong ones are named, each property rejects a wrong
kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.impl import selective_scan as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.drawing import Case
from assay.properties.judgement import examine, prepare
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.properties.selective_scan import SELECTIVE_SCAN
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests import selective_scan_kernels as kernels


SHORT = replace(QUICK, shrink_seconds=0.2)


def subject(name: str, function: Callable[..., Any], **claims: Any) -> TorchSubject:
    return TorchSubject(name, function, Claims(SELECTIVE_SCAN.name, **claims), keywords(SELECTIVE_SCAN))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


@functools.cache
def drawn(dtype: str, examples: int = 8, seed: int = 0) -> dict[str, list[Trial]]:
    """The same cases for kernels of every form, by the form that they claim."""
    first = subject("steps", kernels.steps, form="sequential")
    return {"sequential": prepare(SELECTIVE_SCAN, first, dtype, Effort(examples=examples, seed=seed, climb=0))}


def agrees(name: str, function: Callable[..., Any], form: str, known: dict[str, list[Trial]]) -> int:
    """How many judgements of a kernel were made, forward and backward. Raises: Violation if it misses its bound."""
    kernel = subject(name, function, form=form)
    same = known.setdefault(form, [t.under(kernel) for t in known["sequential"]])
    for trial in (t.under(kernel) for t in same):
        trial.agree()
        trial.agree_in_gradients()
    return len(same)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", kernels.RIGHT)
def test_right_kernels_keep_the_bound_of_the_form_that_they_claim(name: str, dtype: str) -> None:
    assert agrees(name, *kernels.RIGHT[name], drawn(dtype)) >= 8


def test_a_product_may_underflow_in_any_order_backwards_too() -> None:
    """du = G (delta B): where delta B is subnormal, what it has lost is multiplied by G."""
    random = np.random.default_rng(0)
    shape = (1, 64, 1)
    tiny = {name: random.uniform(0.2, 1, shape) * np.finfo(np.float64).tiny for name in ("u", "delta")}
    case = Case(
        "float64",
        {**tiny, "A": np.zeros((64, 1)), "B": np.full((1, 1, 1), 2.0**-10), "C": np.full((1, 1, 1), 3.0)},
        "subnormal",
        0,
    )

    def column_first(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        h = (delta * B) * u  # one position, from 0
        return h * C, h

    trial = Trial(SELECTIVE_SCAN, subject("column_first", column_first, form="sequential"), case)
    trial.agree()
    trial.agree_in_gradients()


AT_EVERY_CHANGE = ("without_step", "exchanged", "first_state", "quotients")


@pytest.mark.parametrize(
    "name", [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in kernels.WRONG]
)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = kernels.WRONG[name]
    found = examine(SELECTIVE_SCAN, subject(name, function), "float32", effort=SHORT, only=("agrees_with_oracle",))
    (result,) = found.results
    assert result.verdict in ("fail", "error")
    if told is not None:
        assert (result.diagnosis[0].kind, result.diagnosis[0].name) == told


def test_differences_of_sums_are_named_where_products_are_claimed() -> None:
    """Legal if it is claimed; and if it is not, it is said what the kernel does instead."""
    function, own = kernels.RIGHT["differences_64"]
    found = examine(
        SELECTIVE_SCAN,
        subject("differences", function, form="sequential"),
        "float32",
        effort=SHORT,
        only=("agrees_with_oracle",),
    )
    (result,) = found.results
    assert result.verdict == "fail"
    assert found.inferred is not None
    assert found.inferred.form == own


@pytest.mark.parametrize(
    "function", [kernels.state_without_gradient, kernels.step_without_gradient], ids=lambda f: f.__name__
)
def test_a_wrong_backward_fails(function: Callable[..., Any]) -> None:
    found = examine(
        SELECTIVE_SCAN, subject("wrong", function, form="sequential"), "float32", effort=replace(SHORT, stop="each")
    )
    assert "gradient" in failures(found)["gradients_agree"]


# Properties ----------------------------------------------------------------------------------------------------------

Call = Callable[..., Any]


def changed(change: Callable[..., dict[str, Any]]) -> Call:
    """Ours, at other arguments."""

    @functools.wraps(fast.selective_scan)
    def kernel(*first: Tensor, **rest: Any) -> Any:
        given = dict(zip(("u", "delta", "A", "B", "C"), first, strict=True)) | rest
        return fast.selective_scan(**given | change(**given))

    return kernel


def output(change: Callable[[Tensor, dict[str, Any]], Tensor]) -> Call:
    """Ours, with another first output."""

    @functools.wraps(fast.selective_scan)
    def kernel(*first: Tensor, **rest: Any) -> Any:
        given = dict(zip(("u", "delta", "A", "B", "C"), first, strict=True)) | rest
        y, state = fast.selective_scan(**given)
        return change(y, given), state

    return kernel


def turned(y: Tensor, given: dict[str, Any]) -> Tensor:
    names = ("u", "delta", "B", "C")
    return fast.selective_scan(**{**given, **{n: given[n].flip(-1) for n in names}})[0].flip(-1)


def positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "no_step_changes_nothing": changed(lambda delta, **rest: {"delta": delta + 0.5}),
    "a_long_step_forgets": changed(lambda delta, **rest: {"delta": delta.clamp(max=1)}),
    "steps_add": changed(lambda delta, **rest: {"delta": delta.square()}),
    "without_decay_it_is_linear_attention": changed(lambda A, **rest: {"A": A - 0.01}),
    "what_is_constant_commutes_with_time": output(lambda y, given: y * (1 + positions(y))),
    "inputs_add": output(lambda y, given: y + 1),
    "states_add": output(lambda y, given: y * given["A"].shape[1]),
    "channels_are_apart": output(lambda y, given: y.cumsum(dim=1)),
    "future_is_unseen": output(turned),
    "state_is_handed_over": changed(lambda state=None, **rest: {"state": None}),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in SELECTIVE_SCAN.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=60, shrink_seconds=0.2, climb=0, stop="each")
    (result,) = examine(SELECTIVE_SCAN, subject(name, KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_every_property_holds_for_a_right_kernel(dtype: str) -> None:
    names = tuple(p.name for p in SELECTIVE_SCAN.properties)
    effort = Effort(examples=24, climb=0, shares=99, stop="each")
    found = examine(
        SELECTIVE_SCAN, subject("ours", fast.selective_scan, form="associative"), dtype, effort=effort, only=names
    )
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """7 kernels x 2 dtypes x 720 cases, forward and backward: 10,080 judgements."""
    right = {**kernels.RIGHT, "ours": (fast.selective_scan, "associative")}
    known = drawn(dtype, examples=720, seed=1)
    assert sum(agrees(name, *kernel, known) for name, kernel in right.items()) == 7 * 720
