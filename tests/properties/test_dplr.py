"""The contract of S4's kernel: right kernels pass, wrong ones are named, each property rejects a wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import dplr as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.dplr import NAMES, S4_KERNEL
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject


Call = Callable[..., Any]
SHORT = replace(QUICK, examples=10, shrink_seconds=0.2, robustness=0, shares=0, pooled=0)
AGREE = ("agrees_with_oracle", "gradients_agree")


def subject(function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(S4_KERNEL.name, **claims), keywords(S4_KERNEL))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


def steps(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
    """The real system, a step at a time."""
    Ab, x, row = fast.system(Lambda, P, Q, B, C, dt)
    lags = []
    for _ in range(length):
        lags.append(row @ x)
        x = Ab @ x
    return torch.stack(lags)


RIGHT: dict[str, tuple[Call, str]] = {
    "steps": (steps, "recurrence"),
    "ours": (fast.s4_kernel, "doubling"),
    "ours_by_cauchy": (fast.s4_kernel_by_cauchy, "cauchy"),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_keep_the_bound_of_the_form_that_they_claim(name: str, dtype: str) -> None:
    function, form = RIGHT[name]
    effort = replace(SHORT, stop="each")
    assert failures(examine(S4_KERNEL, subject(function, form=form), dtype, effort=effort, only=AGREE)) == {}


def at(change: Callable[..., dict[str, Tensor]]) -> Call:
    """Ours, at other arguments."""

    def kernel(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
        given = dict(zip(NAMES, (Lambda, P, Q, B, C), strict=True))
        return fast.s4_kernel(**given | change(**given), dt=dt, length=length)

    return kernel


def kept(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
    """C as models keep it, of the generating function."""
    whole = fast.s4_kernel(Lambda, P, Q, B, C, dt, 2 * length)
    return whole[:length] - whole[length:]


WRONG: dict[str, tuple[Call, str]] = {
    "kept": (kept, "C_of_the_generating_function"),
    "conjugated": (at(lambda C, **rest: {"C": C.conj().resolve_conj()}), "C_conjugated"),
    "added": (at(lambda P, **rest: {"P": -P}), "low_rank_added"),
    "transposed": (at(lambda Q, **rest: {"Q": Q.conj().resolve_conj()}), "Q_not_conjugated"),
}


AT_EVERY_CHANGE = ("kept",)


@pytest.mark.parametrize(
    "name", [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in WRONG]
)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = WRONG[name]
    (result,) = examine(S4_KERNEL, subject(function), "float32", effort=SHORT, only=AGREE[:1]).results
    assert result.verdict == "fail"
    assert told in {f.name for f in result.diagnosis}


def as_written(exact: bool) -> Call:
    """The generating function with 2 / dt (1 - z) / (1 + z), which is infinite at z = -1, or nearly so."""

    def kernel(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
        A = torch.diag(Lambda) - torch.outer(P, Q.conj())
        one = torch.eye(len(B), dtype=A.dtype)
        Ab = torch.linalg.solve(one - dt / 2 * A, one + dt / 2 * A)
        left = C - C @ torch.linalg.matrix_power(Ab, length)
        z = torch.exp(-2j * torch.pi / length * torch.arange(length)).to(B.dtype)
        if exact and length % 2 == 0:
            z[length // 2] = -1
        g = 2 / dt * (1 - z) / (1 + z)
        cb, cp, qb, qp = ((v * w / (g[:, None] - Lambda)).sum(-1) for v in (left, Q.conj()) for w in (B, P))
        return torch.fft.ifft(2 / (1 + z) * (cb - cp * qb / (1 + qp))).real.contiguous()

    return kernel


def test_the_quotient_at_minus_1_fails_where_it_is_removable() -> None:
    """Even where all that the form of the generating function allows is allowed; and a node beside -1, where a rounded
    angle puts it, is as good as -1: it is the same node in all quotients."""
    effort = replace(SHORT, examples=16, stop="each")
    for exact in (True, False):
        kernel = subject(as_written(exact), form="cauchy")
        (result,) = examine(S4_KERNEL, kernel, "float32", effort=effort, only=AGREE[:1]).results
        assert (result.verdict == "fail") == exact
        assert not exact or (result.case is not None and result.case.arguments["length"] % 2 == 0)


def changed(change: Callable[..., Tensor]) -> Call:
    """Ours, with another output."""

    @functools.wraps(fast.s4_kernel)
    def kernel(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
        k = fast.s4_kernel(Lambda, P, Q, B, C, dt, length)
        return change(k, Lambda=Lambda, P=P, C=C, dt=dt)

    return kernel


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "without_low_rank_states_add": changed(lambda k, **rest: k + 1),
    "states_permute": changed(lambda k, C, **rest: k + C[0].real),
    "low_rank_has_no_phase": changed(lambda k, P, **rest: k + P.real.sum()),
    "conjugates_are_meant": changed(lambda k, Lambda, **rest: k + Lambda.imag.sum()),
    "rows_add": changed(lambda k, **rest: k + 1),
    "a_longer_kernel_begins_alike": changed(lambda k, **rest: k.flip(0)),
    "only_products_with_dt_matter": changed(lambda k, dt, **rest: k * (1 + dt)),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in S4_KERNEL.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=30, shrink_seconds=0.2, climb=0, pooled=0, stop="each")
    (result,) = examine(S4_KERNEL, subject(KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


def test_every_property_holds_for_a_right_kernel() -> None:
    names = tuple(KILLERS)
    effort = Effort(examples=8, climb=0, shares=99, pooled=0, stop="each")
    found = examine(S4_KERNEL, subject(fast.s4_kernel, form="doubling"), "float32", effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))
