"""Parameters are meant: a shift far below the rounding noise of any element is seen, named and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from assay.impl.kernel import Claims
from assay.properties import OPERATORS
from assay.properties.contract import Operator, Tensor
from assay.properties.judgement import examine
from assay.properties.results import MEANT, Examination
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject
from tests import kernels
from tests.properties.test_judgement import RMS_NORM, rms, subject


ROPE = OPERATORS["rope"]
DTYPES = ("float32", "bfloat16", "float16")


def meant(found: Examination) -> Any:
    return next(r for r in found.results if r.property == MEANT)


def only(kernel: Callable[..., Any], operator: Operator, dtype: str = "float32", seed: int = 0) -> Any:
    return meant(examine(operator, subject(kernel, operator), dtype, effort=Effort(seed=seed), only=(MEANT,)))


def shifted(factor: float) -> Callable[..., Any]:
    def rope(x: Any, position: Any, *, base: float = 10000.0) -> Any:
        return kernels.right(x, position, base=base * factor)

    return rope


@pytest.mark.parametrize("factor", [1.1, 1.00005, 0.99999])
def test_a_shifted_base_is_named_with_its_value(factor: float) -> None:
    found = examine(ROPE, subject(shifted(factor)), "float32", effort=QUICK)
    assert meant(found).verdict == "fail"
    (finding,) = meant(found).diagnosis
    assert (finding.kind, finding.name) == ("parameter", "base")
    assert finding.sigma > 8
    assert abs(finding.value / factor - 1) < 2e-6  # the legal coherent shift of a float32 base


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", kernels.RIGHT, ids=lambda k: k.__name__)
def test_right_kernels_mean_what_they_were_passed(kernel: Callable[..., Any], dtype: str) -> None:
    result = only(kernel, ROPE, dtype)
    assert (result.verdict, result.message) == ("pass", "")


def test_a_kernel_that_is_wrong_otherwise_is_not_said_to_have_a_shift() -> None:
    result = only(kernels.interleaved, ROPE)
    assert result.verdict == "skipped"
    assert "no parameter explains it" in result.message


# A number that the operator does not have --------------------------------------------------------------------------


def softmax(x: Any) -> Any:
    xp = x.__array_namespace__()
    weights = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return weights / xp.sum(weights, axis=-1, keepdims=True)


def softmax_with_eps(x: Any, *, eps: Any) -> Any:
    xp = x.__array_namespace__()
    weights = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return weights / (xp.sum(weights, axis=-1, keepdims=True) + eps)


SOFTMAX = Operator("softmax", softmax, inputs=(Tensor("x", "t d"),), strays={"eps": softmax_with_eps})


def test_a_stray_eps_is_seen_and_measured() -> None:
    def kernel(x: Any) -> Any:
        weights = (x - x.amax(-1, keepdim=True)).exp()
        return weights / (weights.sum(-1, keepdim=True) + 1e-6)

    found = examine(SOFTMAX, subject(kernel, SOFTMAX), "float32")
    (finding,) = meant(found).diagnosis
    assert finding.name == "eps"
    assert finding.sigma > 8
    assert 0.9e-6 < finding.value < 1.1e-6


def test_a_softmax_without_one_has_none() -> None:
    for dtype in DTYPES:
        assert only(lambda x: x.float().softmax(-1).to(x.dtype), SOFTMAX, dtype).verdict == "pass"


def test_eps_of_a_norm_is_measured_to_five_standard_errors() -> None:
    def kernel(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
        return rms(x, weight, eps=1.001 * eps)

    found = examine(RMS_NORM, subject(kernel, RMS_NORM), "float32")
    (finding,) = meant(found).diagnosis
    assert finding.name == "eps"
    assert abs(finding.value - 1.001) < 5 * 0.001 / finding.sigma + 2e-4


def test_an_operator_without_parameters_is_not_asked() -> None:
    plain = Operator("plain", softmax, inputs=(Tensor("x", "t d"),))
    kernel = TorchSubject("plain", lambda x: x.softmax(-1), Claims("plain"), frozenset())
    assert MEANT not in {r.property for r in examine(plain, kernel, "float32", effort=QUICK).results}


# Many right runs -----------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", kernels.RIGHT, ids=lambda k: k.__name__)
def test_no_right_run_shows_a_shift(kernel: Callable[..., Any], dtype: str) -> None:
    """6 kernels x 3 dtypes x 112 seeds: 2,016 runs."""
    for seed in range(112):
        assert only(kernel, ROPE, dtype, seed).verdict == "pass", seed
