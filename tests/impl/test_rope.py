"""Our kernels of rope keep the bound of the form that they claim, wherever positions go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from assay.impl import rope as fast
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties import OPERATORS
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.run import QUICK, Effort
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests.interpreted import triton


ROPE = OPERATORS["rope"]


def ours(function: Any) -> TorchSubject:
    claims = claims_of(function)
    assert claims is not None
    return TorchSubject(function.__name__, function, claims, keywords(ROPE))


@pytest.mark.parametrize("width", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("function", [fast.rope, fast.rope_table], ids=lambda f: f.__name__)
def test_positions_of_any_width_are_the_same_positions(function: Any, width: torch.dtype) -> None:
    x, position = torch.randn(1, 2, 4, 8), torch.tensor([3, 1, 100, 7])
    assert torch.equal(function(x, position.to(width)), function(x, position))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("function", [fast.rope, fast.rope_table], ids=lambda f: f.__name__)
def test_kernels_keep_what_they_claim(function: Any, dtype: str) -> None:
    subject = ours(function)
    if dtype not in subject.claims.dtypes:
        pytest.skip("not claimed")
    found = examine(ROPE, subject, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


@given(
    start=st.integers(-(2**31), 2**31),
    base=st.floats(100, 1e7),
    layout=st.sampled_from(("half", "interleaved")),
    seed=st.integers(0, 2**32 - 1),
)
def test_rope_is_right_at_every_position(start: int, base: float, layout: str, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, 1, 3, 8)).astype(np.float32)
    position = start + np.arange(3)
    arguments = {"x": x, "position": position, "base": base, "layout": layout, "attention_factor": 1.0}
    Trial(ROPE, ours(fast.rope), Case("float32", arguments, "ordinary", 0)).agree()


def test_a_cached_table_grows_and_keeps_dtypes_apart() -> None:
    """A short call, a longer one, another dtype, and the short one again."""
    x = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    position = torch.arange(4)
    first = fast.rope_table(x, position)
    fast.rope_table(x, position + 70_000)
    fast.rope_table(x.double(), position)
    fast.rope_table(x.bfloat16(), position, base=500.0)
    assert torch.equal(fast.rope_table(x, position), first)


@pytest.mark.parametrize("function", [fast.rope, fast.rope_table], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("keywords_", "message"),
    [({"rotary_dim": 3}, "even"), ({"layout": "sideways"}, "half or interleaved")],
)
def test_wrong_arguments_are_refused(function: Any, keywords_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.ones(2, 8), torch.arange(2), **keywords_)


def test_a_table_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(NotImplementedError, match="131071"):
        fast.rope_table(torch.ones(1, 8), torch.tensor([-1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_triton_kernel_keeps_what_it_claims(dtype: str) -> None:
    interpreted = triton("rope")
    found = examine(ROPE, ours(interpreted.rope), dtype, effort=Effort(examples=40, shrink_seconds=1))
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


def test_queries_and_keys_in_one_launch_are_the_same_as_apart() -> None:
    interpreted = triton("rope")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=generator, requires_grad=True)
    k = torch.randn(2, 2, 5, 8, generator=generator, requires_grad=True)
    position = torch.arange(5) + 1000
    together = interpreted.rope_pair(q, k, position)
    apart = interpreted.rope(q, position), interpreted.rope(k, position)
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)
    weight = torch.randn(2, 4, 5, 8, generator=generator)
    (one,) = torch.autograd.grad(together[0], q, weight)
    (other,) = torch.autograd.grad(apart[0], q, weight)
    assert torch.equal(one, other)
