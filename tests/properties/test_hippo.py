"""The contract of HiPPO's matrices, an operator of a size alone: right kernels pass, wrong ones are named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.impl import hippo as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.contract import Size
from assay.properties.hippo import HIPPO_MATRICES
from assay.properties.judgement import examine, identify
from assay.properties.results import Examination
from assay.properties.robustness import checks
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject


SHORT = replace(QUICK, examples=12, shrink_seconds=0.2, robustness=0)
ONLY = ("agrees_with_oracle",)
Call = Callable[..., Any]


def subject(function: Call, **claims: Any) -> TorchSubject:
    return TorchSubject(function.__name__, function, Claims(HIPPO_MATRICES.name, **claims), keywords(HIPPO_MATRICES))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


# Kernels of the kind that people write, of one measure each, in float32 throughout ----------------------------------


def as_s4(n: int) -> tuple[Tensor, Tensor]:
    """As S4 and its copies write it."""
    p = (1 + 2 * torch.arange(n)).float().sqrt()
    return -((p[:, None] * p).tril() - torch.diag(torch.arange(n))), p


def as_hippo(n: int) -> tuple[Tensor, Tensor]:
    """As HiPPO's first code writes it: similar to a matrix of whole numbers."""
    q = torch.arange(n).float()
    root = (2 * q + 1).sqrt()
    inner = -((2 * q + 1).expand(n, n).tril() - torch.diag(q))
    return torch.diag(root) @ inner @ torch.diag(1 / root), root


def as_lmu(n: int) -> tuple[Tensor, Tensor]:
    q = torch.arange(n, dtype=torch.float64)
    i, j = q[:, None], q
    rows, sign = 2 * i + 1, 1 - 2 * (q % 2)
    a = torch.where(i < j, -rows, -rows * sign[:, None] * sign)
    return a.float(), ((2 * q + 1) * sign).float()


def of_window_two(n: int) -> tuple[Tensor, Tensor]:
    a, b = fast.hippo_matrices(n, measure="fout")
    return a / 2, b / 2


def as_the_paper(n: int) -> tuple[Tensor, Tensor]:
    a, b = fast.hippo_matrices(n)
    return -a, b


RIGHT: dict[str, tuple[Call, dict[str, str]]] = {
    "s4": (as_s4, {}),
    "hippo": (as_hippo, {}),
    "lmu": (as_lmu, {"measure": "lmu"}),
    "window": (of_window_two, {"measure": "fout", "window": "2"}),
    "paper": (as_the_paper, {"sign": "paper"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_of_one_measure_pass(name: str) -> None:
    function, conventions = RIGHT[name]
    found = examine(HIPPO_MATRICES, subject(function), "float32", conventions=conventions, effort=SHORT, only=ONLY)
    assert failures(found) == {}


def test_conventions_are_told_apart() -> None:
    few = replace(HIPPO_MATRICES, forms={})
    found = identify(few, subject(of_window_two), "float32", replace(SHORT, examples=4))
    assert found is not None
    assert {"measure": "fout", "window": "2"}.items() <= dict(found.conventions).items()


def test_the_form_is_told() -> None:
    forms = [
        examine(
            HIPPO_MATRICES, subject(f), "float32", conventions={"measure": "legs"}, effort=SHORT, only=ONLY
        ).inferred
        for f in (as_s4, as_hippo)
    ]
    assert [f is not None and f.form for f in forms] == ["roots", "scaled"]


def remembering(n: int, *, measure: str = "legs", _known: dict[int, Any] = {}) -> tuple[Tensor, Tensor]:
    """Keeps what it made by n alone."""
    if n not in _known:
        _known[n] = fast.hippo_matrices(n, measure=measure)
    return tuple(x.clone() for x in _known[n])  # type: ignore[return-value]


def from_one(n: int) -> tuple[Tensor, Tensor]:
    a, b = fast.hippo_matrices(n + 1)
    return a[1:, 1:].clone(), b[1:].clone()


def growing(n: int) -> tuple[Tensor, Tensor]:
    a, b = fast.hippo_matrices(n, measure="fout")
    return -a, b


def transposed(n: int, *, measure: str = "legs") -> tuple[Tensor, Tensor]:
    a, b = fast.hippo_matrices(n, measure=measure)
    return a.mT.contiguous(), b


WRONG: dict[str, tuple[Call, dict[str, str], str]] = {
    "remembering": (remembering, {}, ""),
    "from_one": (from_one, {"measure": "legs"}, "counted_from_one"),
    "growing": (growing, {"measure": "fout"}, "A_negated"),
    "transposed": (transposed, {}, "A_transposed"),
    "another_window": (of_window_two, {"measure": "fout"}, "window=2"),
    "another_sign": (as_the_paper, {"measure": "legs"}, "sign=paper"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, conventions, told = WRONG[name]
    (result,) = examine(
        HIPPO_MATRICES, subject(function), "float32", conventions=conventions, effort=SHORT, only=ONLY
    ).results
    assert result.verdict == "fail"
    assert not told or told in {f.name for f in result.diagnosis}


# Properties ---------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Call:
    @functools.wraps(fast.hippo_matrices)
    def kernel(n: int, **rest: Any) -> Any:
        return change(*fast.hippo_matrices(n, **rest))

    return kernel


def _last_doubled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a[-1] *= 2
    return a, b


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "smaller_ones_are_nested": changed(_last_doubled),
    "the_rest_is_skew": changed(lambda a, b: (a * 1.001, b)),
    "a_constant_stays": changed(lambda a, b: (a, b * 1.001)),
    "rates_are_whole_numbers": changed(lambda a, b: (a + 0.001 * torch.eye(len(b)), b)),
    "powers_are_kept": changed(lambda a, b: (a * 1.001, b)),
    "a_ramp_is_followed": changed(lambda a, b: (a * 1.001, b * 1.001)),
    "waves_turn": changed(lambda a, b: (a.mT.contiguous(), b)),
    "only_the_age_matters": changed(_last_doubled),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in HIPPO_MATRICES.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=60, shrink_seconds=0.2, climb=0, stop="each")
    (result,) = examine(HIPPO_MATRICES, subject(KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_property_holds_for_a_right_kernel(dtype: str) -> None:
    names = tuple(p.name for p in HIPPO_MATRICES.properties)
    effort = Effort(examples=40, climb=0, shares=99, stop="each")
    found = examine(HIPPO_MATRICES, subject(fast.hippo_matrices), dtype, effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))


# An operator without tensors ----------------------------------------------------------------------------------------


def test_what_is_asked_of_kernels_without_tensors() -> None:
    """Nothing about inputs in memory, and no gradients; but sizes, and what earlier calls leave behind."""
    asked = {c.name for c in checks(HIPPO_MATRICES)}
    assert isinstance(HIPPO_MATRICES.inputs[0], Size)
    assert not asked & {"gradients_agree", "inputs_are_untouched", "any_memory_layout", "same_memory_other_values"}
    assert asked >= {"empty_axes", "malformed_shapes_raise", "earlier_calls_have_no_effect", "outputs_own_their_memory"}


KEPT: dict[Any, Any] = {}


def lending(n: int, *, measure: str = "legs") -> tuple[Tensor, Tensor]:
    """Hands out the same memory twice."""
    if (n, measure) not in KEPT:
        KEPT[n, measure] = fast.hippo_matrices(n, measure=measure)
    return KEPT[n, measure]  # type: ignore[no-any-return]


def careless(n: int) -> tuple[Tensor, Tensor]:
    """Answers whatever the size is."""
    return fast.hippo_matrices(max(n, 0))


def remembers_one(n: int, *, measure: str = "legs") -> tuple[Tensor, Tensor]:
    """Right until another measure of the same size was asked for."""
    KEPT.setdefault("last", {})
    known = KEPT["last"].get(n)
    KEPT["last"] = {n: (measure, fast.hippo_matrices(n, measure=measure))}
    return known[1] if known is not None and known[0] != measure and n > 1 else KEPT["last"][n][1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "demand"),
    [
        (lending, "outputs_own_their_memory"),
        (careless, "malformed_shapes_raise"),
        (remembers_one, "earlier_calls_have_no_effect"),
    ],
)
def test_what_kernels_without_tensors_owe_beside(function: Call, demand: str) -> None:
    KEPT.clear()
    effort = replace(SHORT, robustness=3, examples=8)
    found = examine(
        HIPPO_MATRICES,
        subject(function),
        "float32",
        conventions={"measure": "legs"} if function is careless else {},
        effort=effort,
        only=(demand,),
    )
    assert found.results[0].verdict == "fail"
