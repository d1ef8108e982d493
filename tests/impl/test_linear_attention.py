"""Linear attention in torch and in Triton: whatever a sequence is cut into, the sums are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assay.impl import linear_attention as plain
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.judgement import examine
from assay.properties.linear_attention import LINEAR_ATTENTION, UNNORMALIZED_ATTENTION
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject
from tests.interpreted import triton


@pytest.fixture(params=["torch", "triton"])
def function(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return plain.linear_attention if request.param == "torch" else triton("linear_attention").linear_attention


def integers(*shape: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-3, 4, shape, generator=made).float().requires_grad_()


def summed(function: Callable[..., Any], t: int) -> None:
    """Outputs, state and gradients, also through the state: of small integers every sum is exact."""
    q, k, v, state = integers(1, 2, t, 4), integers(1, 2, t, 4), integers(1, 2, t, 3), integers(1, 2, 4, 3)
    settings: dict[str, Any] = {"feature_map": "identity", "causal": True, "normalize": False}
    got = function(q, k, v, state=state, return_state=True, **settings)
    want = (q @ k.mT).tril() @ v + q @ state, state + k.mT @ v
    cotangents = [integers(*x.shape).detach() for x in want]
    gradients = (torch.autograd.grad(x, (q, k, v, state), cotangents) for x in (got, want))
    for a, b in zip((*got, *next(gradients)), (*want, *next(gradients)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("t", [1, 63, 64, 65, 150])
def test_integers_are_summed_exactly(function: Callable[..., Any], t: int) -> None:
    summed(function, t)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 200])
def test_the_size_of_chunks_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "CHUNK", chunk)
    monkeypatch.setattr(plain, "CHUNKS", 6)
    for t in (1, 20, 43):
        summed(plain.linear_attention, t)


def test_a_zero_denominator_gives_zero_and_no_gradient(function: Callable[..., Any]) -> None:
    q = torch.full((1, 1, 3, 2), -1.0, requires_grad=True)
    out = function(q, q, torch.ones(1, 1, 3, 2), feature_map="relu", causal=True)
    (gradient,) = torch.autograd.grad(out, q, torch.ones_like(out))
    assert not out.any()
    assert not gradient.any()


@pytest.mark.parametrize("causal", [True, False])
def test_a_zero_denominator_gives_zero_whatever_has_overflown(function: Callable[..., Any], causal: bool) -> None:
    """0 times an infinite state is NaN."""
    q, k, v = -torch.ones(1, 1, 3, 2), torch.full((1, 1, 3, 2), 1e30), torch.full((1, 1, 3, 2), 1e30)
    assert (function(q, k, v, feature_map="relu", causal=causal) == 0).all()


@pytest.mark.parametrize("causal", [True, False])
def test_without_positions_there_is_nothing_but_the_state(function: Callable[..., Any], causal: bool) -> None:
    x, state = torch.ones(1, 2, 0, 3), torch.ones(1, 2, 3, 4)
    out, after = function(x, x, x, causal=causal, state=state, return_state=True)
    assert out.shape == (1, 2, 0, 3)
    assert torch.equal(after, state)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_memory_grows_no_faster_than_the_sequence() -> None:
    """No step of forward or backward makes anything longer than the inputs, but for one more column."""
    t, d = 4096, 64
    q, k, v = (torch.randn(1, 1, t, d, requires_grad=True) for _ in range(3))
    saved: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = plain.linear_attention(q, k, v, causal=True)
        assert isinstance(out, torch.Tensor)
        held = sum(saved)
        out.backward(torch.ones_like(out))
    assert largest.elements <= t * (d + 1)
    assert held <= t * (4 * d + 1)  # queries, keys, values, output, and the sum of the weights


def test_wrong_arguments_are_refused(function: Callable[..., Any]) -> None:
    q, k = torch.ones(1, 1, 3, 2), torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="as many keys"):
        function(q, k, k, causal=True)
    with pytest.raises(ValueError, match="denominator"):
        function(q, q, q, denominator="minus")
    with pytest.raises(ValueError, match="neither causal nor continued"):
        function(q, q, q, feature_map="softmax", causal=True)
    with pytest.raises(ValueError, match="right or left"):
        plain.unnormalized_attention(q, q, q, order="middle")


def verdicts(function: Callable[..., Any], dtype: str, effort: Effort) -> dict[str, str]:
    claims = claims_of(function)
    assert claims is not None
    operator = LINEAR_ATTENTION if claims.operator == LINEAR_ATTENTION.name else UNNORMALIZED_ATTENTION
    subject = TorchSubject("ours", function, claims, keywords(operator))
    found = examine(operator, subject, dtype, effort=effort)
    return {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("function", [plain.unnormalized_attention, plain.linear_attention], ids=lambda f: f.__name__)
def test_kernels_keep_what_they_claim(function: Callable[..., Any], dtype: str) -> None:
    assert verdicts(function, dtype, QUICK) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_triton_kernel_keeps_what_it_claims(dtype: str) -> None:
    """In the interpreter, where there is no GPU."""
    assert verdicts(triton("linear_attention").linear_attention, dtype, Effort(examples=40, climb=0, pooled=0)) == {}
