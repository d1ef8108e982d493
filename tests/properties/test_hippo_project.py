"""The contract of the projection of a history: right kernels pass, wrong ones are named, each property rejects one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import hippo_project as fast
from assay.impl.hippo import hippo_matrices
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.hippo_project import HIPPO_PROJECT
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject


SHORT = replace(QUICK, examples=10, shrink_seconds=0.2, robustness=0)
ONLY = ("agrees_with_oracle",)
Call = Callable[..., Any]


def subject(function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject(function.__name__, function, Claims(HIPPO_PROJECT.name, **claims), keywords(HIPPO_PROJECT))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


# Kernels of the kind that people write, each of one method ------------------------------------------------------------


def looped(f: Tensor, step: Callable[[int, Tensor, Tensor], Tensor], n: int, start: Tensor | None = None) -> Tensor:
    c = f[:1] * (torch.eye(n)[0] if start is None else start)
    rows = [c]
    for k in range(1, len(f)):
        c = step(k, c, f[k])
        rows.append(c)
    return torch.stack(rows) if len(f) else f.new_zeros(0, n)


def by_solving(f: Tensor, n: int) -> Tensor:
    A, B = hippo_matrices(n)
    one = torch.eye(n)

    def step(k: int, c: Tensor, x: Tensor) -> Tensor:
        right = (one + A / (2 * k)) @ c + B / k * x
        return torch.linalg.solve_triangular(one - A / (2 * k), right[:, None], upper=False)[:, 0]

    return looped(f, step, n)


def by_matrices(f: Tensor, n: int) -> Tensor:
    """As HiPPO's code: matrices first, backward."""
    A, B = hippo_matrices(n)
    one = torch.eye(n)
    return looped(
        f,
        lambda k, c, x: torch.linalg.solve(one - A / k, one) @ c + torch.linalg.solve(one - A / k, B / k) * x,
        n,
    )


def by_prefix_sums(f: Tensor, n: int) -> Tensor:
    """Euler, with A c from one cumulative sum."""
    i = torch.arange(n)
    s = (2 * i + 1).float().sqrt()

    def step(k: int, c: Tensor, x: Tensor) -> Tensor:
        sums = (s * c).cumsum(0) - s * c
        return c + (s * (x - sums) - (i + 1) * c) / k

    return looped(f, step, n)


def by_integrals(f: Tensor, n: int) -> Tensor:
    """The Legendre projection of the step function itself, in float64."""
    rows = []
    for k in range(1, len(f) + 1):
        x = 2 * torch.arange(k + 1, dtype=torch.float64) / k - 1
        p = [torch.ones_like(x), x]
        for j in range(1, n):
            p.append(((2 * j + 1) * x * p[j] - j * p[j - 1]) / (j + 1))
        q = [x, *((p[j + 1] - p[j - 1]) / (2 * j + 1) for j in range(1, n))]
        rows.append(torch.stack([(f[:k] * y.diff()).sum() * (2 * j + 1) ** 0.5 / 2 for j, y in enumerate(q[:n])]))
    return torch.stack(rows).float() if rows else f.new_zeros(0, n)


AT_EVERY_CHANGE = ("solving", "later", "another_method")
RIGHT: dict[str, tuple[Call, str, str | None]] = {
    "solving": (by_solving, "bilinear", "rows"),
    "matrices": (by_matrices, "backward", "eliminated"),
    "prefix_sums": (by_prefix_sums, "euler", "rows"),
    "integrals": (by_integrals, "zoh", "dense"),
}


def at_night(names: Iterable[str]) -> list[Any]:
    """Those that take long, as bounds of many coefficients do, are left to the night."""
    return [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in names]


@pytest.mark.parametrize("name", at_night(RIGHT))
def test_right_kernels_of_one_method_pass(name: str) -> None:
    function, method, form = RIGHT[name]
    few = replace(SHORT, examples=16 if method != "zoh" else 10, stop="each")
    names = ("agrees_with_oracle", "a_constant_stays", "it_is_linear", "it_is_the_legendre_projection")
    found = examine(
        HIPPO_PROJECT, subject(function, form=form), "float32", conventions={"method": method}, effort=few, only=names
    )
    assert {n: m for n, m in failures(found).items() if "null kernels" not in m} == {}


def starts_with_B(f: Tensor, n: int) -> Tensor:
    A, B = hippo_matrices(n)
    one = torch.eye(n)
    return looped(f, lambda k, c, x: torch.linalg.solve(one - A / k, c + B / k * x), n, start=B)


def later(f: Tensor, n: int) -> Tensor:
    """Time counted from 2."""
    A, B = hippo_matrices(n)
    one = torch.eye(n)
    return looped(f, lambda k, c, x: torch.linalg.solve(one - A / (k + 1), c + B / (k + 1) * x), n)


def transposed(f: Tensor, n: int) -> Tensor:
    A, B = hippo_matrices(n)
    one = torch.eye(n)
    return looped(f, lambda k, c, x: torch.linalg.solve(one - A.mT / k, c + B / k * x), n)


WRONG: dict[str, tuple[Call, str, str]] = {
    "starts_with_B": (starts_with_B, "backward", "starts_with_B"),
    "later": (later, "backward", "time_one_more"),
    "transposed": (transposed, "backward", "A_transposed"),
    "another_method": (by_solving, "backward", "method=bilinear"),
}


@pytest.mark.parametrize("name", at_night(WRONG))
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, method, told = WRONG[name]
    operator = replace(HIPPO_PROJECT, forms={})  # the definition is one of them, the tightest
    (result,) = examine(
        operator, subject(function), "float32", conventions={"method": method}, effort=SHORT, only=ONLY
    ).results
    assert result.verdict == "fail"
    assert told in {f.name for f in result.diagnosis}


# Properties ----------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Something done to what ours returns, and to its argument."""

    @functools.wraps(fast.hippo_project)
    def kernel(f: Tensor, n: int, **rest: Any) -> Any:
        return change(fast.hippo_project(f, n, **rest), f)

    return kernel


def _last_scaled(c: Tensor, f: Tensor) -> Tensor:
    return c * (1 + 0.01 * (torch.arange(c.shape[1]) == c.shape[1] - 1))


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "it_is_the_legendre_projection": changed(lambda c, f: c * 1.001),
    "only_ratios_of_times_matter": changed(lambda c, f: c * (1 + 0.01 / (1 + torch.arange(len(c)))[:, None])),
    "a_constant_stays": changed(lambda c, f: c * 1.001),
    "fewer_coefficients_are_the_first": changed(_last_scaled),
    "the_past_alone_counts": changed(lambda c, f: c + 0.01 * f.sum()),
    "it_is_linear": changed(lambda c, f: c + 0.01 * c.abs()),
    "the_first_is_the_mean": changed(lambda c, f: c * 1.001),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in HIPPO_PROJECT.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=40, shrink_seconds=0.2, climb=0, stop="each")
    found = examine(HIPPO_PROJECT, subject(KILLERS[name], form="rows"), "float32", effort=effort, only=(name,))
    assert found.results[0].verdict == "fail"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_every_property_holds_for_a_right_kernel(dtype: str) -> None:
    names = tuple(p.name for p in HIPPO_PROJECT.properties)
    effort = Effort(examples=24, climb=0, shares=2, stop="each")
    found = examine(HIPPO_PROJECT, subject(fast.hippo_project, form="rows"), dtype, effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """500 cases in each dtype, forward and backward."""
    effort = Effort(examples=500, seed=1, climb=0, robustness=0, pooled=0)
    found = examine(
        HIPPO_PROJECT, subject(fast.hippo_project, form="rows"), dtype, effort=effort, only=(*ONLY, "gradients_agree")
    )
    assert failures(found) == {}
