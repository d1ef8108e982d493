"""The contracts of the scan and the kernel of a state space: right kernels pass, wrong ones are named, each property
rejects a wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import state_space as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.contract import Operator
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.properties.state_space import SSM_KERNEL, SSM_SCAN
from assay.runner import TorchSubject


Call = Callable[..., Any]
SHORT = replace(QUICK, examples=10, shrink_seconds=0.2, robustness=0, shares=0)
AGREE = ("agrees_with_oracle", "gradients_agree")


def subject(operator: Operator, function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(operator.name, **claims), keywords(operator))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


# Kernels of the kind that people write --------------------------------------------------------------------------------


def step_by_step(u: Tensor, Ab: Tensor, Bb: Tensor, C: Tensor, *, state: Tensor | None = None) -> Any:
    x, out = u.new_zeros(len(u), len(C)) if state is None else state, []
    for k in range(u.shape[1]):
        x = x @ Ab.T + u[:, k : k + 1] * Bb
        out.append(x @ C)
    return (torch.stack(out, dim=1) if out else torch.empty_like(u)), x.clone()


def in_one_dot(u: Tensor, Ab: Tensor, Bb: Tensor, C: Tensor, *, state: Tensor | None = None) -> Any:
    """[A | B] times [x; u]: the input is one more term of the sum."""
    x, both, out = u.new_zeros(len(u), len(C)) if state is None else state, torch.cat((Ab, Bb[:, None]), dim=1), []
    for k in range(u.shape[1]):
        x = torch.cat((x, u[:, k : k + 1]), dim=1) @ both.T
        out.append(x @ C)
    return (torch.stack(out, dim=1) if out else torch.empty_like(u)), x.clone()


def by_pairs(u: Tensor, Ab: Tensor, Bb: Tensor, C: Tensor, *, state: Tensor | None = None) -> Any:
    def joined(p: Tensor, x: Tensor) -> Tensor:
        if len(x) < 2:
            return x
        odd = joined(p @ p, x[: len(x) - 1 : 2] @ p.T + x[1::2])
        even = torch.cat((x[:1], odd[: (len(x) - 1) // 2] @ p.T + x[2::2]))
        return torch.stack([(odd if k % 2 else even)[k // 2] for k in range(len(x))])

    x = u.T[:, :, None] * Bb
    if state is not None and len(x):
        x = torch.cat(((state @ Ab.T + x[0])[None], x[1:]))
    if not len(x):
        return torch.empty_like(u), (u.new_zeros(len(u), len(C)) if state is None else state.clone())
    x = joined(Ab, x)
    return (x @ C).T.contiguous(), x[-1].clone()


def powers(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
    power, out = torch.eye(len(C), dtype=Ab.dtype), []
    for _ in range(length):
        out.append(C @ (power @ Bb))
        power = Ab @ power
    return torch.stack(out)


def columns(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
    x, out = Bb, []
    for _ in range(length):
        out.append(C @ x)
        x = Ab @ x
    return torch.stack(out)


def rows(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
    return columns(Ab.T, C, Bb, length)


RIGHT: dict[str, tuple[Operator, Call, str]] = {
    "step_by_step": (SSM_SCAN, step_by_step, "recurrence"),
    "in_one_dot": (SSM_SCAN, in_one_dot, "recurrence"),
    "by_pairs": (SSM_SCAN, by_pairs, "associative"),
    "our_scan": (SSM_SCAN, fast.ssm_scan, "chunked"),
    "columns": (SSM_KERNEL, columns, "recurrence"),
    "rows": (SSM_KERNEL, rows, "rows"),
    "powers": (SSM_KERNEL, powers, "powers"),
    "our_kernel": (SSM_KERNEL, fast.ssm_kernel, "doubling"),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_keep_the_bound_of_the_form_that_they_claim(name: str, dtype: str) -> None:
    operator, function, form = RIGHT[name]
    effort = replace(SHORT, stop="each")
    found = examine(operator, subject(operator, function, form=form), dtype, effort=effort, only=AGREE)
    assert failures(found) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RIGHT)
def test_no_right_kernel_exceeds_the_bound(name: str, dtype: str) -> None:
    """8 kernels x 2 dtypes x 700 cases, forward and backward."""
    operator, function, form = RIGHT[name]
    many = Effort(examples=700, seed=1, climb=0, robustness=0, stop="each")
    assert failures(examine(operator, subject(operator, function, form=form), dtype, effort=many, only=AGREE)) == {}


def diagonalised(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
    values, vectors = torch.linalg.eig(Ab)
    known = torch.linalg.lstsq(vectors, Bb.to(vectors.dtype)[:, None]).solution[:, 0]
    lags = values[None] ** torch.arange(length)[:, None]
    return ((lags * known) @ (C.to(vectors.dtype) @ vectors)).real.contiguous()


WRONG: dict[str, tuple[Operator, Call, str | None]] = {
    "late": (
        SSM_SCAN,
        lambda u, Ab, Bb, C: (
            torch.nn.functional.pad(step_by_step(u, Ab, Bb, C)[0], (1, -1)),
            step_by_step(u, Ab, Bb, C)[1],
        ),
        "reads_the_state_before",
    ),
    "transposed": (SSM_SCAN, lambda u, Ab, Bb, C: step_by_step(u, Ab.T, Bb, C), "Ab_transposed"),
    "forgets": (SSM_SCAN, lambda u, Ab, Bb, C, *, state=None: step_by_step(u, Ab, Bb, C), "state_ignored"),
    "feedthrough": (
        SSM_SCAN,
        lambda u, Ab, Bb, C: (step_by_step(u, Ab, Bb, C)[0] + u, step_by_step(u, Ab, Bb, C)[1]),
        "input_added_to_the_output",
    ),
    "from_one": (
        SSM_KERNEL,
        lambda Ab, Bb, C, length: columns(Ab, Bb, C, length + 1)[1:].clone(),
        "starts_one_lag_late",
    ),
    "diagonalised": (SSM_KERNEL, diagonalised, None),
}


AT_EVERY_CHANGE = ("late", "diagonalised")


@pytest.mark.parametrize(
    "name", [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in WRONG]
)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    operator, function, told = WRONG[name]
    effort = replace(SHORT, examples=12)
    (result,) = examine(operator, subject(operator, function), "float32", effort=effort, only=AGREE[:1]).results
    assert result.verdict in ("fail", "error")
    if told is not None:
        assert told in {f.name for f in result.diagnosis}


def test_powers_of_a_diagonalised_matrix_are_lost_where_eigenvectors_are_nearly_parallel() -> None:
    """HiPPO's matrix of 24 states: no form allows what is left."""
    i = 2 * torch.arange(24, dtype=torch.float64) + 1
    a = -(i[:, None] * i).sqrt().tril(-1) - torch.diag((i + 1) / 2)
    one = torch.eye(24, dtype=torch.float64)
    Ab = torch.linalg.solve(one - a / 64, one + a / 64).float()
    Bb, C = i.sqrt().float(), torch.ones(24)
    wide, own, theirs = (
        f(*x, length=64)
        for f, x in (
            (columns, (Ab.double(), Bb.double(), C.double())),
            (fast.ssm_kernel, (Ab, Bb, C)),
            (diagonalised, (Ab, Bb, C)),
        )
    )
    assert (own - wide).abs().max() * 1000 < (theirs - wide).abs().max()


# Properties -----------------------------------------------------------------------------------------------------------


def at(function: Call, change: Callable[..., dict[str, Any]]) -> Call:
    """A kernel at other arguments."""

    @functools.wraps(function)
    def kernel(*first: Tensor, **rest: Any) -> Any:
        names = ("u", "Ab", "Bb", "C") if len(first) == 4 else ("Ab", "Bb", "C")
        given = dict(zip(names, first, strict=True)) | rest
        return function(**given | change(**given))

    return kernel


def scanned(change: Callable[..., Tensor]) -> Call:
    """Our scan, with another first output."""

    def kernel(u: Tensor, Ab: Tensor, Bb: Tensor, C: Tensor, *, state: Tensor | None = None) -> Any:
        y, after = fast.ssm_scan(u, Ab, Bb, C, state=state)
        return change(y, u=u, Ab=Ab, Bb=Bb, C=C, state=state), after

    return kernel


def lagged(change: Callable[..., Tensor]) -> Call:
    """Our kernel, changed."""

    def kernel(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
        return change(fast.ssm_kernel(Ab, Bb, C, length), Ab=Ab, Bb=Bb, C=C)

    return kernel


def count(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, dict[str, Call]] = {
    SSM_SCAN.name: {
        "states_permute": scanned(lambda y, C, **rest: y + C[0]),
        "states_have_no_unit": scanned(lambda y, C, **rest: y + C.sum()),
        "states_apart_add": scanned(lambda y, **rest: y + 1),
        "it_is_a_convolution": scanned(lambda y, **rest: y * (1 + count(y))),
        "an_impulse_leaves_B": at(fast.ssm_scan, lambda state=None, **rest: {"state": None}),
        "commutes_with_time": scanned(lambda y, **rest: y * (1 + count(y))),
        "inputs_add": scanned(lambda y, **rest: y + 1),
        "future_is_unseen": scanned(lambda y, u, **rest: y + u[:, -1:]),
        "state_is_handed_over": at(fast.ssm_scan, lambda state=None, **rest: {"state": None}),
    },
    SSM_KERNEL.name: {
        "states_permute": lagged(lambda k, C, **rest: k + C[0]),
        "states_have_no_unit": lagged(lambda k, C, **rest: k + C.sum()),
        "states_apart_add": lagged(lambda k, **rest: k + 1),
        "a_longer_kernel_begins_alike": lagged(lambda k, **rest: k.flip(0)),
        "the_next_lag": lagged(lambda k, **rest: k * (1 + count(k))),
        "transposition": lagged(lambda k, Bb, **rest: k * (1 + Bb.sum())),
        "rows_add": lagged(lambda k, **rest: k + 1),
        "a_delay_line_has_its_taps": lagged(lambda k, **rest: k.roll(1)),
    },
}
BOTH = {o.name: o for o in (SSM_SCAN, SSM_KERNEL)}


@pytest.mark.parametrize("operator", BOTH)
def test_every_property_has_a_killer(operator: str) -> None:
    assert {p.name for p in BOTH[operator].properties} == set(KILLERS[operator])


@pytest.mark.parametrize(("operator", "name"), [(o, name) for o, own in KILLERS.items() for name in own])
def test_every_property_rejects_a_wrong_kernel(operator: str, name: str) -> None:
    effort = Effort(examples=30, shrink_seconds=0.2, climb=0, stop="each")
    kernel = subject(BOTH[operator], KILLERS[operator][name])
    (result,) = examine(BOTH[operator], kernel, "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("operator", BOTH)
def test_every_property_holds_for_a_right_kernel(operator: str) -> None:
    names = tuple(p.name for p in BOTH[operator].properties)
    _, function, form = RIGHT[{SSM_SCAN.name: "our_scan", SSM_KERNEL.name: "our_kernel"}[operator]]
    effort = Effort(examples=8, climb=0, shares=99, stop="each")
    kernel = subject(BOTH[operator], function, form=form)
    found = examine(BOTH[operator], kernel, "float32", effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))
