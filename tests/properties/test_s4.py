"""The contract of the kernel of a diagonal state space: right kernels pass, wrong ones are named, each property rejects
a wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import s4 as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.judgement import examine, prepare
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.properties.s4 import S4D_KERNEL
from assay.runner import TorchSubject


Call = Callable[..., Any]
SHORT = replace(QUICK, examples=8, shrink_seconds=0.2, robustness=0, shares=0)
AGREE = ("agrees_with_oracle", "gradients_agree")


def subject(function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(S4D_KERNEL.name, **claims), keywords(S4D_KERNEL))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


def as_written(Lambda: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
    """As S4D and its copies write it."""
    z = dt * Lambda
    weight = C * ((torch.exp(z) - 1) / Lambda * B)
    return 2 * torch.einsum("n,nl->l", weight, torch.exp(z[:, None] * torch.arange(length))).real.contiguous()


def by_expm1(Lambda: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
    z = dt * Lambda
    a, b = z.real, z.imag
    held = torch.complex(a.expm1() * b.cos() - 2 * (b / 2).sin().square(), a.exp() * b.sin())
    zero = Lambda == 0
    held = torch.where(zero, dt * (1 + z / 2), held / torch.where(zero, torch.ones_like(z), Lambda))
    powers = torch.exp(torch.arange(length)[:, None] * z)
    return 2 * (powers @ (C * held * B)).real.contiguous()


def bilinear(Lambda: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
    """A step at a time."""
    half = dt * Lambda / 2
    a, x, lags = (1 + half) / (1 - half), dt * B / (1 - half), []
    for _ in range(length):
        lags.append(2 * (C * x).sum().real)
        x = a * x
    return torch.stack(lags)


RIGHT: dict[str, tuple[Call, str, str]] = {
    "by_expm1": (by_expm1, "exponentials", "zoh"),
    "as_written": (as_written, "naive", "zoh"),
    "bilinear": (bilinear, "recurrence", "bilinear"),
    "ours": (fast.s4d_kernel, "products", "zoh"),
    "ours_bilinear": (fast.s4d_kernel, "products", "bilinear"),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_keep_the_bound_of_the_form_that_they_claim(name: str, dtype: str) -> None:
    function, form, method = RIGHT[name]
    effort = replace(SHORT, stop="each")
    found = examine(
        S4D_KERNEL, subject(function, form=form), dtype, conventions={"method": method}, effort=effort, only=AGREE
    )
    assert failures(found) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RIGHT)
def test_no_right_kernel_exceeds_the_bound(name: str, dtype: str) -> None:
    """5 kernels x 2 dtypes x 1,000 cases, forward and backward."""
    function, form, method = RIGHT[name]
    many = Effort(examples=1000, seed=1, climb=0, robustness=0, shares=0, stop="each")
    kernel = subject(function, form=form)
    assert failures(examine(S4D_KERNEL, kernel, dtype, conventions={"method": method}, effort=many, only=AGREE)) == {}


@pytest.mark.parametrize(("dtype", "own"), [("float32", "complex64"), ("float64", "complex128")])
def test_inputs_are_complex_and_gradients_too(dtype: str, own: str) -> None:
    """In every regime both parts are drawn; a gradient is compared part by part."""
    trials = prepare(S4D_KERNEL, subject(fast.s4d_kernel, form="products"), dtype, replace(SHORT, climb=0))
    assert len(trials) >= 8
    for trial in trials:
        assert {str(trial.case.arguments[name].dtype) for name in ("Lambda", "B", "C")} == {own}
        found = trial.answer(gradients=True).gradients["Lambda"]
        assert str(found.dtype) == own
        assert trial.exact_gradient["Lambda"].shape == (*found.shape, 2)
    assert any(t.case.arguments["B"].imag.any() for t in trials)


def test_exp_minus_1_is_named_where_the_stable_form_is_claimed() -> None:
    found = examine(S4D_KERNEL, subject(as_written, form="exponentials"), "float32", effort=SHORT, only=AGREE[:1])
    (result,) = found.results
    assert result.verdict == "fail"
    assert ("form", "naive") in {(f.kind, f.name) for f in result.diagnosis}


WRONG: dict[str, tuple[Call, str | None]] = {
    "once": (lambda Lambda, B, C, dt, length: by_expm1(Lambda, B, C, dt, length) / 2, "real_part_once"),
    "conjugated": (lambda Lambda, B, C, dt, length: by_expm1(Lambda, B, C.conj().clone(), dt, length), "C_conjugated"),
    "late": (
        lambda Lambda, B, C, dt, length: by_expm1(Lambda, B, C, dt, length + 1)[1:].clone(),
        "starts_one_lag_late",
    ),
    "bilinear": (bilinear, "method=bilinear"),
}


AT_EVERY_CHANGE = ("once", "bilinear")


@pytest.mark.parametrize(
    "name", [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in WRONG]
)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = WRONG[name]
    (result,) = examine(S4D_KERNEL, subject(function), "float32", effort=SHORT, only=AGREE[:1]).results
    assert result.verdict == "fail"
    assert told in {f.name for f in result.diagnosis}


def test_a_gradient_that_is_not_conjugated_fails() -> None:
    def backward(cotangent: Tensor, Lambda: Tensor, B: Tensor, C: Tensor, **rest: Any) -> Any:
        given = [x.detach().requires_grad_() for x in (Lambda, B, C)]
        with torch.enable_grad():
            y = fast.s4d_kernel(*given, **rest)
            found = torch.autograd.grad(y, given, cotangent)
        return tuple(g.conj().resolve_conj() for g in found)

    def kernel(Lambda: Tensor, B: Tensor, C: Tensor, dt: Any, length: int) -> Tensor:
        return fast.s4d_kernel(Lambda, B, C, dt, length)

    effort = replace(SHORT, stop="each")
    found = examine(S4D_KERNEL, subject(kernel, backward=backward), "float32", effort=effort, only=AGREE)
    assert set(failures(found)) == {"gradients_agree"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_there_are_no_complex_numbers_of_half_precision(dtype: str) -> None:
    found = examine(S4D_KERNEL, subject(fast.s4d_kernel), dtype)
    assert found.verdict == "skipped"
    assert all(dtype in r.message for r in found.results)


# Properties -----------------------------------------------------------------------------------------------------------


def changed(change: Callable[..., Tensor]) -> Call:
    """Ours, with another output."""

    @functools.wraps(fast.s4d_kernel)
    def kernel(Lambda: Tensor, B: Tensor, C: Tensor, dt: Any, length: int, *, method: str = "zoh") -> Tensor:
        return change(fast.s4d_kernel(Lambda, B, C, dt, length, method=method), Lambda=Lambda, B=B, C=C, dt=dt)

    return kernel


def count(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "without_decay_it_integrates": changed(lambda k, **rest: k * (1 + count(k))),
    "conjugates_are_meant": changed(lambda k, Lambda, **rest: k + Lambda.imag.sum()),
    "B_and_C_commute": changed(lambda k, C, **rest: k + C.real.sum()),
    "states_add": changed(lambda k, **rest: k + 1),
    "rows_add": changed(lambda k, **rest: k + 1),
    "a_longer_kernel_begins_alike": changed(lambda k, **rest: k.flip(0)),
    "only_products_with_dt_matter": changed(lambda k, dt, **rest: k * (1 + dt)),
    "half_steps_add": changed(lambda k, **rest: k + 1),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in S4D_KERNEL.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=30, shrink_seconds=0.2, climb=0, pooled=0, stop="each")
    (result,) = examine(S4D_KERNEL, subject(KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


def test_every_property_holds_for_a_right_kernel() -> None:
    names = tuple(KILLERS)
    effort = Effort(examples=8, climb=0, shares=99, pooled=0, stop="each")
    found = examine(S4D_KERNEL, subject(fast.s4d_kernel, form="products"), "float32", effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))
