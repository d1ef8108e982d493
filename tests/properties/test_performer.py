"""The contracts of random features and Performer attention: each property rejects a wrong kernel, slips are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from assay.impl import performer as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.contract import Operator
from assay.properties.judgement import examine
from assay.properties.mutants import right
from assay.properties.performer import PERFORMER_ATTENTION, RANDOM_FEATURES
from assay.properties.run import Effort
from assay.runner import TorchSubject


Kernel = Callable[..., Any]
FEW = Effort(examples=30, climb=0, shrink_seconds=0.1, pooled=0)


def subject(operator: Operator, function: Kernel, **claims: Any) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(operator.name, **claims), keywords(operator))


def features(change: Kernel) -> Kernel:
    def kernel(x: torch.Tensor, projection: torch.Tensor, *, kind: str = "positive") -> torch.Tensor:
        return change(fast.random_features, x, projection, kind)  # type: ignore[no-any-return]

    return kernel


def attention(change: Kernel) -> Kernel:
    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        projection: torch.Tensor,
        *,
        kind: str = "positive",
        causal: bool = False,
        eps: float = 0.0,
    ) -> torch.Tensor:
        given: dict[str, Any] = {"kind": kind, "causal": causal, "eps": eps}
        return change(fast.performer_attention, q, k, v, projection, given)  # type: ignore[no-any-return]

    return kernel


def places(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[-2], dtype=x.dtype)[:, None]


# For each property, a wrong kernel that it must reject by itself.
OF_FEATURES: dict[str, Kernel] = {
    "never_negative": lambda f, x, w, kind: f(x, w, kind=kind) - 1,
    "sides_meet": lambda f, x, w, kind: f(x, w, kind=kind) * 1.01,
    "signs_cancel": lambda f, x, w, kind: f(x, w, kind=kind) * (1 + x[..., :1].sign() / 8),
    "rows_permute": lambda f, x, w, kind: f(x, w * (1 + places(w)), kind=kind),
    "positions_permute": lambda f, x, w, kind: f(x, w, kind=kind) * (1 + places(x)),
    "zero_is_known": lambda f, x, w, kind: f(x, w, kind=kind) * 1.01,
    "estimates_see_sums": lambda f, x, w, kind: f(x, w, kind=kind) * (1 + x.abs().sum(dim=-1, keepdim=True)),
}

OF_ATTENTION: dict[str, Kernel] = {
    "weights_sum_to_one": lambda f, q, k, v, w, given: f(q, k, v, w, **given) * 1.01,
    "within_the_values": lambda f, q, k, v, w, given: 1 + 1.5 * f(q, k, v, w, **given),
    "one_key_gives_its_value": lambda f, q, k, v, w, given: f(q, k, v, w, **given) * 1.01,
    "keys_permute": lambda f, q, k, v, w, given: f(q, k, v * (1 + places(v)), w, **given),
    "queries_permute": lambda f, q, k, v, w, given: f(q, k, v, w, **given) * (1 + places(q)),
    "rows_permute": lambda f, q, k, v, w, given: f(q, k, v, w * (1 + places(w)), **given),
    "mirrored": lambda f, q, k, v, w, given: f(q, k, v, w + 1, **given),
    "values_add": lambda f, q, k, v, w, given: f(q, k, v.abs(), w, **given),
    "future_is_unseen": lambda f, q, k, v, w, given: f(q, k, v, w, **{**given, "causal": False}),
    "last_query_sees_all": lambda f, q, k, v, w, given: f(q, k, v, w, **given) * (1.5 if given["causal"] else 1),
    "without_projection_lengths_weigh": lambda f, q, k, v, w, given: f(q, 1.5 * k, v, w, **given),
}

PROPERTIES = [
    *((RANDOM_FEATURES, name, features(change)) for name, change in OF_FEATURES.items()),
    *((PERFORMER_ATTENTION, name, attention(change)) for name, change in OF_ATTENTION.items()),
]


def test_every_property_has_a_killer() -> None:
    assert set(OF_FEATURES) == {p.name for p in RANDOM_FEATURES.properties}
    assert set(OF_ATTENTION) == {p.name for p in PERFORMER_ATTENTION.properties}


@pytest.mark.parametrize(("operator", "name", "wrong"), PROPERTIES, ids=[f"{o.name}-{n}" for o, n, _ in PROPERTIES])
def test_every_property_rejects_a_wrong_kernel(operator: Operator, name: str, wrong: Kernel) -> None:
    effort = replace(FEW, stop="first")
    (result,) = examine(operator, subject(operator, wrong), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.nightly
@pytest.mark.parametrize("operator", [RANDOM_FEATURES, PERFORMER_ATTENTION], ids=lambda o: o.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_passes(operator: Operator, dtype: str) -> None:
    for form in operator.texts:
        found = examine(operator, right(operator, dtype).but(form=form), dtype, effort=FEW)
        assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error")} == {}


def _without_norm(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    c = q.shape[-1] ** -0.25
    a, b = ((c * x @ projection.mT).exp() for x in (q, k))
    return a @ (b.mT @ v) / (a @ b.sum(dim=-2)[..., None])


def _scaled_like_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    c = q.shape[-1] ** -0.25
    return fast.performer_attention(c * q, c * k, v, projection)


@pytest.mark.parametrize(
    ("function", "slip"), [(_without_norm, "keys_without_norm"), (_scaled_like_softmax, "scale_of_softmax")]
)
def test_slips_are_named(function: Kernel, slip: str) -> None:
    only = ("agrees_with_oracle",)
    found = examine(PERFORMER_ATTENTION, subject(PERFORMER_ATTENTION, function), "float32", effort=FEW, only=only)
    assert found.results[0].verdict == "fail"
    assert slip in [f.name for f in found.results[0].diagnosis]
