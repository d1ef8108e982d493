"""The judge: right kernels pass, wrong ones fail and are named, and what could not fail is not believed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties import OPERATORS, diagnosis
from assay.properties.contract import Operator, Positive, Property, Tensor
from assay.properties.judgement import examine, identify, prepare
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.reference import rope as reference
from assay.reference.arithmetic.array import array_namespace
from assay.runner import TorchSubject
from tests import kernels


ROPE = OPERATORS["rope"]
DTYPES = ("float32", "bfloat16", "float16")


def subject(kernel: Callable[..., Any], operator: Operator = ROPE, **claims: Any) -> TorchSubject:
    return TorchSubject(kernel.__name__, kernel, Claims(operator.name, **claims), keywords(operator))


@functools.cache
def judged(kernel: Callable[..., Any], dtype: str = "float32", **claims: Any) -> Examination:
    return examine(ROPE, subject(kernel, **claims), dtype, effort=QUICK)


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict == "fail"}


def told(found: Examination) -> list[tuple[str, str]]:
    return [(f.kind, f.name) for r in found.results for f in r.diagnosis]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", kernels.RIGHT, ids=lambda k: k.__name__)
def test_right_kernels_pass(kernel: Callable[..., Any], dtype: str) -> None:
    found = judged(kernel, dtype)
    assert failures(found) == {}
    assert found.verdict == "pass"
    assert found.inferred is not None


@pytest.mark.parametrize(
    ("kernel", "kind", "name"),
    [
        (kernels.interleaved, "convention", "layout=interleaved"),
        (kernels.off_by_one, "slip", "position_off_by_one"),
        (kernels.base_10001, "parameter", "base"),
        (kernels.bf16_table, "precision", "bfloat16-table"),
        (kernels.copy, "slip", "position_ignored"),
    ],
)
def test_wrong_kernels_are_named(kernel: Callable[..., Any], kind: str, name: str) -> None:
    found = judged(kernel)
    assert found.verdict == "fail"
    assert told(found)[0] == (kind, name)


def test_the_value_of_a_shifted_parameter_is_told() -> None:
    (finding,) = judged(kernels.base_10001).results[0].diagnosis
    assert finding.value is not None
    assert 10000.5 < finding.value * 10000 < 10001.5


@pytest.mark.parametrize(
    ("kernel", "demand", "message"),
    [
        (kernels.zeros, "agrees_with_oracle", "off by"),
        (kernels.wrong_shape, "agrees_with_oracle", "shape"),
        (kernels.wrong_dtype, "agrees_with_oracle", "dtype float64 instead of float32"),
        (kernels.not_a_number, "agrees_with_oracle", "nan"),
        (kernels.wrong_gradient, "gradients_agree", "gradient of x"),
        (kernels.writes_to_its_input, "inputs_are_untouched", "changed its input x"),
        (kernels.dead_tail, "agrees_with_oracle", "off by"),
    ],
)
def test_what_is_broken_is_said(kernel: Callable[..., Any], demand: str, message: str) -> None:
    effort = Effort() if kernel is kernels.dead_tail else QUICK
    found = examine(ROPE, subject(kernel), "float32", effort=effort)
    assert message in failures(found)[demand]


def test_eager_bfloat16_fails_its_natural_precision_and_is_named() -> None:
    found = judged(kernels.eager, "bfloat16")
    assert found.verdict == "fail"
    assert told(found)[0] == ("precision", "bfloat16-steps")
    assert judged(kernels.eager, "bfloat16", precision="bfloat16-steps").verdict == "pass"


def test_a_kernel_that_raises_is_an_error_in_one_line() -> None:
    found = judged(kernels.raises)
    assert found.verdict == "error"
    assert found.results[0].message == "RuntimeError: the device is on fire"


def test_a_form_that_is_claimed_is_held_to_its_bound() -> None:
    assert judged(kernels.right, form="direct").verdict == "pass"
    found = judged(kernels.right, form="table")
    assert found.verdict == "fail"
    assert told(found)[0] == ("form", "direct")


@pytest.mark.parametrize(
    ("kernel", "layout", "form", "precision"),
    [
        (kernels.right, "half", "direct", "float32"),
        (kernels.interleaved, "interleaved", "direct", "float32"),
        (kernels.bf16_table, "half", "direct", "bfloat16-table"),
    ],
)
def test_identify_names_layout_form_and_precision(
    kernel: Callable[..., Any], layout: str, form: str, precision: str
) -> None:
    answer = identify(ROPE, subject(kernel), "float32", QUICK)
    assert answer is not None
    assert answer.conventions == {"layout": layout}
    assert (answer.inferred.form, answer.inferred.precision) == (form, precision)
    assert answer.cases == answer.answered


def test_identify_tells_on_how_many_cases() -> None:
    def alone(x: Any, position: Any, *, base: float = 10000.0) -> Any:
        """Of several tokens right for the first batch row only, as where the tables of one are taken for all."""
        rows = 1 if x.shape[-2] > 1 else len(x)
        return torch.cat([kernels.right(x[:rows], position, base=base), 0 * x[rows:]])

    answer = identify(ROPE, subject(alone), "float32", QUICK)
    assert answer is not None
    assert answer.conventions == {"layout": "half"}
    assert answer.answered / 2 < answer.cases < answer.answered


def test_a_loose_precision_does_not_excuse_what_is_wrong_in_few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(x: Any, position: Any, *, base: float = 10000.0) -> Any:
        """One token of several rows gets the rotation of its neighbour, if far out: a float16 angle is off by more."""
        alone = x.shape[-2] == 1 and x.shape[0] > 1
        return kernels.right(x, position + (position > 4096) if alone else position, base=base)

    answer = identify(ROPE, subject(beside), "float32", QUICK)
    assert answer is not None
    assert answer.inferred.precision == "float32"
    assert answer.answered / 2 < answer.cases < answer.answered
    monkeypatch.setattr(diagnosis, "_refuted", lambda *_: False)
    excused = identify(ROPE, subject(beside), "float32", QUICK)
    assert excused is not None
    assert excused.inferred.precision == "float16-angle", "the case is one where this matters"


def test_an_operator_whose_cases_tell_nothing_is_undecided() -> None:
    def nothing(x: Any) -> Any:
        return x - x

    operator = Operator("nothing", nothing, (Tensor("x", "t d"),))
    found = examine(operator, subject(nothing, operator), "float32", effort=QUICK)
    assert found.results[0].verdict == "undecided"


def test_the_same_seed_gives_the_same_verdict_and_headroom() -> None:
    one, two = (examine(ROPE, subject(kernels.right), "float32", effort=QUICK) for _ in range(2))
    assert [(r.property, r.verdict, r.cases, r.headroom) for r in one.results] == [
        (r.property, r.verdict, r.cases, r.headroom) for r in two.results
    ]


def test_a_kernel_without_backward_is_not_asked_for_gradients() -> None:
    found = judged(kernels.right, backward="none")
    gradient = next(r for r in found.results if r.property == "gradients_agree")
    assert (gradient.verdict, gradient.message) == ("skipped", "the kernel claims no backward")


# A user's own operator -------------------------------------------------------------------------------------------


def rms_norm(x: Any, weight: Any, *, eps: Any) -> Any:
    xp = x.__array_namespace__()
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


RMS_NORM = Operator(
    "rms_norm",
    definition=rms_norm,
    inputs=(Tensor("x", "t d"), Tensor("weight", "d")),
    parameters=(Positive("eps", default=1e-6, low=1e-6, high=1e-2),),
)


def rms(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    if not x.is_floating_point():
        raise TypeError("x must have a floating-point dtype")
    wide = x.float()
    return (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.float()).to(x.dtype)


def rms_doubled(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    return rms(x, weight, eps=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_kernel_of_a_users_operator_passes(dtype: str) -> None:
    found = examine(RMS_NORM, subject(rms, RMS_NORM), dtype, effort=QUICK)
    assert failures(found) == {}
    assert found.verdict == "pass"


def test_eps_doubled_is_named() -> None:
    found = examine(RMS_NORM, subject(rms_doubled, RMS_NORM), "float32", effort=QUICK)
    texts = [f.text for r in found.results for f in r.diagnosis]
    assert "the parameter eps is doubled" in texts


# Many judgements -------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """6 kernels x 3 dtypes x 1,200 cases: 21,600 judgements, forward and backward."""
    drawn = prepare(ROPE, subject(kernels.right), dtype, Effort(examples=1200, seed=1, climb=0))
    judged = 0
    for kernel in kernels.RIGHT:
        for trial in (t.under(subject(kernel)) for t in drawn):
            trial.agree()
            trial.agree_in_gradients()
            judged += 1
    assert judged == 6 * 1200


def test_the_bound_is_approached_on_ordinary_numbers() -> None:
    """A bound that is never approached tests nothing: above 0.001 for a good float32 kernel."""
    from assay.properties.drawing import Case
    from assay.properties.trial import Trial

    random = np.random.default_rng(0)
    for _ in range(20):
        x = random.standard_normal((1, 2, 8, 16)).astype(np.float32)
        arguments = {"x": x, "position": np.arange(8), "base": 10000.0, "attention_factor": 1.0}
        trial = Trial(ROPE, subject(kernels.right), Case("float32", arguments, "ordinary", 0))
        trial.agree()
        assert trial.headroom > 0.001


def test_forms_are_those_of_the_reference() -> None:
    assert set(ROPE.texts.values()) == {reference.table, reference.reduced, reference.direct}


def test_a_property_that_no_case_is_in_the_domain_of_is_looked_for_and_then_undecided() -> None:
    rare = Property("rare", "x = x", lambda t: t.given(np.zeros(1)) if t.case.arguments["eps"] > 2e-3 else None)
    never = Property("never", "x = x", lambda t: None)
    operator = dataclasses.replace(RMS_NORM, properties=(rare, never))
    found = examine(operator, subject(rms, operator), "float32", effort=Effort(examples=24, climb=0, pooled=0))
    verdicts = {r.property: r.verdict for r in found.results}
    assert (verdicts["rare"], verdicts["never"]) == ("pass", "undecided")


# Where no digits decide ----------------------------------------------------------------------------------------------


def jump(x: Any) -> Any:
    """x, or -x: which of them depends on a comparison of equals, but for squares of few digits."""
    xp = array_namespace(x)
    root = xp.sqrt(x * x + 1)
    return xp.where(root * root <= x * x + 1, x, -x)


JUMP = Operator("jump", jump, inputs=(Tensor("x", "n"),))


def test_a_case_that_no_digits_decide_is_no_case() -> None:
    """It neither ends the run nor counts."""
    found = examine(JUMP, subject(lambda x: x.clone(), JUMP), "float32", effort=Effort(examples=6, climb=0, pooled=0))
    (agreement,) = (r for r in found.results if r.property == "agrees_with_oracle")
    assert "the exact answer is not known" in agreement.message
    assert found.verdict == "undecided"
