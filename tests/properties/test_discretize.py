"""The contract of discretisation: right kernels pass, wrong ones are named, each property rejects a wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import discretize as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.discretize import DISCRETIZE
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject


SHORT = replace(QUICK, examples=20, shrink_seconds=0.2, robustness=0)
ONLY = ("agrees_with_oracle",)
Call = Callable[..., Any]


def subject(name: str, function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject(name, function, Claims(DISCRETIZE.name, **claims), keywords(DISCRETIZE))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


# Kernels of the kind that people write, each of one method ------------------------------------------------------------


def by_inverse(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    """As S4 and its copies write it, bilinear."""
    one = torch.eye(len(B))
    left = torch.linalg.inv(one - dt / 2 * A)
    return left @ (one + dt / 2 * A), left @ (dt * B)


def by_solving(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    one = torch.eye(len(B))
    return torch.linalg.solve(one - dt * A, one), torch.linalg.solve(one - dt * A, dt * B)


def by_blocks(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    """The exponential of the block matrix, of two at once."""
    block = torch.nn.functional.pad(torch.cat((A, B[:, None]), dim=1), (0, 0, 0, 1))
    found = torch.linalg.matrix_exp(dt * block.expand(2, -1, -1))[0, :-1]
    return found[:, :-1].clone(), found[:, -1].clone()


RIGHT: dict[str, tuple[Call, str]] = {
    "by_inverse": (by_inverse, "bilinear"),
    "by_solving": (by_solving, "backward"),
    "by_blocks": (by_blocks, "zoh"),
    "explicit": (lambda A, B, *, dt: (torch.eye(len(B)) + dt * A, dt * B), "euler"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_of_one_method_pass(name: str) -> None:
    function, method = RIGHT[name]
    found = examine(
        DISCRETIZE,
        subject(name, function),
        "float32",
        conventions={"method": method},
        effort=SHORT,
        only=(*ONLY, "gradients_agree", "a_fixed_point_stays", "half_steps_compose"),
    )
    assert failures(found) == {}


def by_dividing(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    """A**-1 (exp(dt A) - I) B, which is lost where A is nearly singular."""
    Ab = torch.linalg.matrix_exp((dt * A).expand(2, -1, -1))[0]
    return Ab, torch.linalg.solve_ex(A, (Ab - torch.eye(len(B))) @ B).result


def by_elements(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    return (dt * A).exp(), fast.discretize(A, B, dt=dt, method="zoh")[1]


def by_eigenvalues(A: Tensor, B: Tensor, *, dt: float) -> tuple[Tensor, Tensor]:
    """Diagonalised, which a defective matrix cannot be."""
    values, vectors = torch.linalg.eig(A)
    Ab = ((vectors * (dt * values).exp()) @ torch.linalg.pinv(vectors)).real
    return Ab.contiguous(), fast.discretize(A, B, dt=dt, method="zoh")[1]


WRONG: dict[str, tuple[Call, str, str | None]] = {
    "divides": (by_dividing, "zoh", "(exp(z) - 1) / z"),
    "elements": (by_elements, "zoh", "exponential_of_each_element"),
    "eigenvalues": (by_eigenvalues, "zoh", "naive diagonalisation"),
    "transposed": (lambda A, B, *, dt: by_inverse(A.mT, B, dt=dt), "bilinear", "A_transposed"),
    "half": (lambda A, B, *, dt: by_inverse(A, B, dt=dt / 2), "bilinear", "half_a_step"),
    "no_step": (lambda A, B, *, dt: (by_inverse(A, B, dt=dt)[0], by_inverse(A, B / dt, dt=dt)[1]), "bilinear", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, method, told = WRONG[name]
    found = examine(
        DISCRETIZE, subject(name, function), "float32", conventions={"method": method}, effort=SHORT, only=ONLY
    )
    (result,) = found.results
    assert result.verdict == "fail"
    if told is not None:
        assert told in {f.name for f in result.diagnosis}


def test_another_method_is_named() -> None:
    kernel = subject("inverse", by_inverse)
    (result,) = examine(
        DISCRETIZE, kernel, "float32", conventions={"method": "backward"}, effort=SHORT, only=ONLY
    ).results
    assert result.verdict == "fail"
    assert "bilinear" in str(result.diagnosis[0])


# Properties ----------------------------------------------------------------------------------------------------------


def changed(change: Callable[..., dict[str, Any]]) -> Call:
    """Ours, at other arguments."""

    @functools.wraps(fast.discretize)
    def kernel(A: Tensor, B: Tensor, **rest: Any) -> Any:
        given = {"A": A, "B": B, **rest}
        return fast.discretize(**given | change(**given))

    return kernel


def output(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Call:
    @functools.wraps(fast.discretize)
    def kernel(A: Tensor, B: Tensor, **rest: Any) -> Any:
        return change(*fast.discretize(A, B, **rest))

    return kernel


def _numbered(x: Tensor) -> Tensor:
    return torch.arange(1, len(x) + 1, dtype=x.dtype)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "no_step_changes_nothing": changed(lambda dt, **rest: {"dt": dt + 0.01}),
    "states_permute": output(lambda Ab, Bb: (Ab, Bb * _numbered(Bb))),
    "states_apart_stay_apart": output(lambda Ab, Bb: (Ab + Bb.sum(), Bb)),
    "only_products_with_dt_matter": changed(lambda dt, **rest: {"dt": dt * dt}),
    "a_fixed_point_stays": changed(lambda B, dt, **rest: {"B": B * 1.001}),
    "a_step_is_taken_back": changed(lambda A, **rest: {"A": A.abs()}),
    "half_steps_compose": changed(lambda dt, **rest: {"dt": dt * dt}),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in DISCRETIZE.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=60, shrink_seconds=0.2, climb=0, stop="each")
    (result,) = examine(DISCRETIZE, subject(name, KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_every_property_holds_for_a_right_kernel(dtype: str) -> None:
    names = tuple(p.name for p in DISCRETIZE.properties)
    effort = Effort(examples=40, climb=0, shares=99, stop="each")
    found = examine(DISCRETIZE, subject("ours", fast.discretize), dtype, effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """1,000 cases in each dtype, forward and backward."""
    effort = Effort(examples=1000, seed=1, climb=0, robustness=0, pooled=0)
    found = examine(DISCRETIZE, subject("ours", fast.discretize), dtype, effort=effort, only=(*ONLY, "gradients_agree"))
    assert failures(found) == {}
