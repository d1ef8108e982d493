"""The contracts of linear and unnormalised attention: right kernels pass, wrong ones are named, each property rejects a
wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.impl import linear_attention as fast
from assay.impl.kernel import Claims, claims_of
from assay.kernels import keywords
from assay.properties.contract import Operator
from assay.properties.drawing import Case
from assay.properties.judgement import examine, prepare
from assay.properties.linear_attention import LINEAR_ATTENTION, UNNORMALIZED_ATTENTION
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.properties.trial import Trial, Violation
from assay.runner import TorchSubject
from tests import linear_attention_kernels as kernels


HALF = ("bfloat16", "float16")
SHORT = replace(QUICK, shrink_seconds=0.2)
OPERATORS = {o.name: o for o in (LINEAR_ATTENTION, UNNORMALIZED_ATTENTION)}


def subject(
    name: str, function: Callable[..., Any], operator: Operator = LINEAR_ATTENTION, **claims: Any
) -> TorchSubject:
    return TorchSubject(name, function, Claims(operator.name, **claims), keywords(operator))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


@functools.cache
def drawn(dtype: str, examples: int = 10, seed: int = 0) -> dict[str | None, list[Trial]]:
    """The same cases for kernels of every form, by the form that they claim."""
    first = subject("weights", kernels.RIGHT["weights"][0], form="quadratic")
    return {"quadratic": prepare(LINEAR_ATTENTION, first, dtype, Effort(examples=examples, seed=seed, climb=0))}


def agrees(name: str, function: Callable[..., Any], form: str | None, known: dict[str | None, list[Trial]]) -> int:
    """How many judgements of a kernel were made, forward and backward. Raises: Violation if it misses its bound."""
    kernel = subject(name, function, form=form)
    same = known.setdefault(form, [t.under(kernel) for t in known["quadratic"]])
    for trial in (t.under(kernel) for t in same):
        trial.agree()
        trial.agree_in_gradients()
    return len(same)


AT_EVERY_CHANGE = ("weights", "prefix_elu", "chunks_64", "one_ahead", "lonely_chunks", "without_one", "state_doubled")
"""Of the kernels; the others are judged every night."""


def some(names: Iterable[str]) -> list[Any]:
    return [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in names]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", some(kernels.RIGHT))
def test_right_kernels_keep_the_bound_of_the_form_that_they_claim(name: str, dtype: str) -> None:
    function, form = kernels.RIGHT[name]
    assert agrees(name, function, form, drawn(dtype)) >= 10


@pytest.mark.parametrize("name", some(kernels.WRONG))
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = kernels.WRONG[name]
    found = examine(LINEAR_ATTENTION, subject(name, function), "float32", effort=SHORT, only=("agrees_with_oracle",))
    (result,) = found.results
    assert result.verdict == "fail"
    if told is not None:
        assert (result.diagnosis[0].kind, result.diagnosis[0].name) == told


@pytest.mark.parametrize("function", [kernels.wrong_backward, kernels.state_without_gradient], ids=lambda f: f.__name__)
def test_a_wrong_backward_fails(function: Callable[..., Any]) -> None:
    effort = replace(SHORT, stop="each")
    found = examine(LINEAR_ATTENTION, subject("wrong", function, form="quadratic"), "float32", effort=effort)
    assert "gradient" in failures(found)["gradients_agree"]


def test_the_feature_map_as_torch_writes_it_is_a_form_of_its_own() -> None:
    """elu(x) + 1 loses the digits of what is small: 1e-5 times exp(10) is seen in the output."""
    q, k, v = (np.full((1, 1, 2, 1), x, np.float32) for x in (-10.3, -10.7, 1.0))
    v[..., 1, :] = 3
    k[..., 1, :] = -11.9
    case = Case("float32", {"q": q, "k": k, "v": v, "eps": 0.0}, "by hand", 0)
    function, _ = kernels.RIGHT["weights_elu"]
    Trial(LINEAR_ATTENTION, subject("elu", function, form="quadratic-elu"), case).agree()
    with pytest.raises(Violation):
        Trial(LINEAR_ATTENTION, subject("elu", function, form="quadratic"), case).agree()


# Properties ----------------------------------------------------------------------------------------------------------

Call = Callable[..., Any]


def full(change: Callable[[Call, Tensor, Tensor, Tensor, dict[str, Any]], Any]) -> Call:
    """Ours with one thing changed, with every keyword."""

    @functools.wraps(fast.linear_attention)
    def kernel(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Any:
        return change(fast.linear_attention, q, k, v, given)

    return kernel


def _output(change: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """The first output changed, given q."""

    def changed(f: Call, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> Any:
        found = f(q, k, v, **given)
        return (change(found[0], q), found[1]) if isinstance(found, tuple) else change(found, q)

    return full(changed)


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-2], dtype=x.dtype)[:, None]


def _state_forgotten(f: Call, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> Any:
    return f(q, k, v, **{**given, "state": None})


def _acausal(f: Call, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> Any:
    return f(q, k, v, **{**given, "causal": False})


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "within_the_values": _output(lambda out, q: out * 1.5 + 1),
    "weights_sum_to_one": _output(lambda out, q: out * 1.001),
    "one_key_gives_its_value": _output(lambda out, q: out * 1.001),
    "keys_permute": full(lambda f, q, k, v, given: f(q, k, v * (1 + _positions(v)), **given)),
    "queries_permute": _output(lambda out, q: out * (1 + _positions(q))),
    "values_add": _output(lambda out, q: out + 1),
    "longer_queries_look_the_same": _output(lambda out, q: out * q.norm(dim=-1, keepdim=True)),
    "softmax_ignores_shifts": _output(lambda out, q: out * (1 + q.sum(dim=-1, keepdim=True))),
    "future_is_unseen": full(_acausal),
    "first_query_sees_its_key": full(_acausal),
    "last_query_sees_all": _output(lambda out, q: out * (1 + _positions(q))),
    "state_is_handed_over": full(_state_forgotten),
}


def _order(change: Callable[[Tensor, Tensor, Tensor, str], Tensor]) -> Call:
    def kernel(q: Tensor, k: Tensor, v: Tensor, *, order: str = "right") -> Tensor:
        return change(q, k, v, order)

    return kernel


def _masked(q: Tensor, k: Tensor, v: Tensor, order: str) -> Tensor:
    """With a causal mask on one side, the order matters."""
    return (q @ k.mT).tril() @ v if order == "left" else q @ (k.mT @ v)


UNNORMALIZED_KILLERS: dict[str, Call] = {
    "associates": _order(_masked),
    "keys_permute": _order(lambda q, k, v, order: q @ (k.mT @ (v * (1 + _positions(v))))),
    "queries_permute": _order(lambda q, k, v, order: q @ (k.mT @ v) * (1 + _positions(q))),
    "queries_add": _order(lambda q, k, v, order: q.square() @ (k.mT @ v)),
    "values_add": _order(lambda q, k, v, order: q @ (k.mT @ v.square())),
}
ALL = [("linear_attention", n) for n in KILLERS] + [("unnormalized_attention", n) for n in UNNORMALIZED_KILLERS]


def test_every_property_has_a_killer() -> None:
    assert {("linear_attention", p.name) for p in LINEAR_ATTENTION.properties} | {
        ("unnormalized_attention", p.name) for p in UNNORMALIZED_ATTENTION.properties
    } == set(ALL)


@pytest.mark.parametrize(("operator", "name"), ALL)
def test_every_property_rejects_a_wrong_kernel(operator: str, name: str) -> None:
    killers = KILLERS if operator == "linear_attention" else UNNORMALIZED_KILLERS
    kernel = subject(name, killers[name], OPERATORS[operator])
    effort = Effort(examples=60, shrink_seconds=0.2, climb=0, stop="each")
    (result,) = examine(OPERATORS[operator], kernel, "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


TURNS = Effort(examples=40, climb=0, shares=99, stop="each")
RIGHT = {"linear_attention": fast.linear_attention, "unnormalized_attention": fast.unnormalized_attention}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_property_holds_for_a_right_kernel(operator: str, dtype: str) -> None:
    own = OPERATORS[operator]
    names = tuple(p.name for p in own.properties)
    kernel = subject("ours", RIGHT[operator], own, form="chunked" if own is LINEAR_ATTENTION else None)
    found = examine(own, kernel, dtype, effort=TURNS, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))


def test_integers_associate_bit_for_bit() -> None:
    """The bound of integer cases is zero, so that the law is one of bits there."""
    drawn = prepare(
        UNNORMALIZED_ATTENTION,
        subject("ours", fast.unnormalized_attention, UNNORMALIZED_ATTENTION),
        "float32",
        Effort(examples=60, climb=0),
    )
    integers = [t for t in drawn if t.case.regime == "integers"]
    assert integers
    for trial in integers:
        assert not trial.bound[0].any()


def test_a_property_about_another_convention_is_skipped() -> None:
    """Whoever knows only exp cannot be asked about relu: that is no failure, and is said."""

    def fixed(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        return fast.linear_attention(q, k, v, feature_map="exp", causal=causal)  # type: ignore[return-value]

    found = examine(
        LINEAR_ATTENTION,
        subject("fixed", fixed, form="chunked"),
        "float32",
        effort=TURNS,
        conventions={"feature_map": "exp"},
        only=("within_the_values", "softmax_ignores_shifts"),
    )
    told = {r.property: (r.verdict, r.message) for r in found.results}
    assert failures(found) == {}
    assert told["softmax_ignores_shifts"] == ("skipped", "it is not about feature_map=exp")
    assert told["within_the_values"][0] == "pass"


# Many judgements -------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """11 kernels x 2 dtypes x 480 cases, forward and backward: 10,560 judgements."""
    claims = claims_of(fast.linear_attention)
    assert claims is not None
    right = {**kernels.RIGHT, "ours": (fast.linear_attention, claims.form)}
    known = drawn(dtype, examples=480, seed=1)
    assert sum(agrees(name, *kernel, known) for name, kernel in right.items()) == 11 * 480
