"""The size of gradients: a factor within all bounds is told, what roundings may do together is not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl.kernel import Claims
from assay.impl.linear_attention import unnormalized_attention
from assay.impl.performer import performer_attention
from assay.kernels import keywords
from assay.properties import OPERATORS
from assay.properties.contract import Operator
from assay.properties.drawing import Values, rounded
from assay.properties.emulated import Wrong
from assay.properties.gains import gains
from assay.properties.judgement import examine, prepare
from assay.properties.linear_attention import UNNORMALIZED_ATTENTION
from assay.properties.mutants import right
from assay.properties.performer import PERFORMER_ATTENTION
from assay.properties.results import SIZED
from assay.properties.run import QUICK, Effort
from assay.properties.trial import Trial
from assay.runner import TorchSubject


@cache
def trials(name: str, dtype: str) -> list[Trial]:
    operator = OPERATORS[name]
    return prepare(operator, right(operator, dtype), dtype, Effort(examples=40, climb=0))


def times(factor: float, name: str, dtype: str, of: str) -> list[Trial]:
    """Trials of a kernel of which one gradient is too large."""

    def grown(found: dict[str, Values]) -> dict[str, Values]:
        return {n: rounded(g.astype(np.float64) * factor, dtype) if n == of else g for n, g in found.items()}

    kernel = Wrong("grown", right(OPERATORS[name], dtype), gradients=grown)
    return [trial.under(kernel) for trial in trials(name, dtype)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["unnormalized_attention", "rope", "ssm_kernel"])
def test_right_gradients_have_their_size(name: str, dtype: str) -> None:
    found = gains(trials(name, dtype))
    assert found
    assert not any(gain.counts for gain in found)


@pytest.mark.parametrize("of", UNNORMALIZED_ATTENTION.tensors)
def test_a_factor_is_told_and_measured(of: str) -> None:
    found = {g.name: g for g in gains(times(1 + 2**-6, UNNORMALIZED_ATTENTION.name, "bfloat16", of))}
    assert [name for name, gain in found.items() if gain.counts] == [of]
    assert abs(found[of].value - 2**-6) < found[of].legal
    assert f"the gradient of {of} is 1.01" in str(found[of])


def test_the_factor_may_be_what_roundings_make_together() -> None:
    """The gradient is rounded once, and one of the products before it: two roundoffs, of which this is one."""
    (found,) = (g for g in gains(times(1 + 2**-8, UNNORMALIZED_ATTENTION.name, "bfloat16", "q")) if g.name == "q")
    assert found.sigma > 8
    assert 2**-8 < found.legal < 2**-6
    assert not found.counts


def test_few_cases_tell_nothing() -> None:
    assert gains(trials(UNNORMALIZED_ATTENTION.name, "bfloat16")[:10]) == []


class Grown(torch.autograd.Function):
    """x, whose gradient is 1/32 too large: of Performer, what roundings make together may come to 0.02."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: torch.Tensor) -> torch.Tensor:
        return g[0] * (1 + 2**-5)


def verdict(operator: Operator, function: Any, **claims: Any) -> tuple[str, str]:
    subject = TorchSubject("kernel", function, Claims(operator.name, **claims), keywords(operator))
    found = examine(operator, subject, "bfloat16", effort=QUICK, only=(SIZED,))
    return next(((r.verdict, r.message) for r in found.results if r.property == SIZED), ("", ""))


def test_kernels_are_held_to_it() -> None:
    """One whose gradients are outside their bounds is told that alone."""

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grown: torch.Tensor = Grown.apply(q)  # type: ignore[no-untyped-call]
        return unnormalized_attention(grown, k, v)

    assert verdict(UNNORMALIZED_ATTENTION, unnormalized_attention)[0] == "pass"
    assert verdict(UNNORMALIZED_ATTENTION, unnormalized_attention, backward="none")[0] == ""
    assert verdict(UNNORMALIZED_ATTENTION, kernel) == ("skipped", "gradients are outside their bounds")


@pytest.mark.nightly
def test_a_factor_within_all_bounds_is_a_failure() -> None:
    """Performer attention keeps features in bfloat16, each of them rounded forward and backward."""

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        grown: torch.Tensor = Grown.apply(q)  # type: ignore[no-untyped-call]
        return performer_attention(grown, k, v, projection)

    assert verdict(PERFORMER_ATTENTION, performer_attention)[0] == "pass"
    found, told = verdict(PERFORMER_ATTENTION, kernel)
    assert found == "fail"
    assert told.startswith("the gradient of q is 1.03")
