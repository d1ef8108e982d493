"""Our kernels of Performer: chunks change nothing, features are not kept, and the bound of the claims is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import performer as fast
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.performer import PERFORMER_ATTENTION, RANDOM_FEATURES
from assay.properties.run import QUICK, Effort
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests.interpreted import triton


OPERATORS = {o.name: o for o in (RANDOM_FEATURES, PERFORMER_ATTENTION)}


def inputs(t: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(t)
    shapes = ((2, 3, t, 8), (2, 3, t, 8), (2, 3, t, 5), (6, 8))
    return [0.7 * torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]


def agrees(function: Any, dtype: str, sizes: tuple[int, int, int], **chosen: Any) -> None:
    """Forward and backward, within the derived bound: queries, keys and rows of the projection."""
    t, s, r = sizes
    random = np.random.default_rng(t)
    shapes = {"q": (1, 2, t, 4), "k": (1, 2, s, 4), "v": (1, 2, s, 3), "projection": (r, 4)}
    arrays = {name: (0.7 * random.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    claims = claims_of(function)
    assert claims is not None
    subject = TorchSubject("performer", function, claims, keywords(PERFORMER_ATTENTION))
    trial = Trial(PERFORMER_ATTENTION, subject, Case(dtype, {**arrays, **chosen, "stabilizer": "none"}, "ordinary", t))
    trial.agree()
    trial.agree_in_gradients()


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("t", [1, 3, 10])
@pytest.mark.parametrize("kind", fast.KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_chunks_of_any_size_are_right(
    t: int, chunk: int, kind: str, causal: bool, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "CHUNK", chunk)
    agrees(fast.performer_attention, "float64", (t, t, 5), kind=kind, causal=causal, eps=eps)


@pytest.mark.parametrize("kind", fast.KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_triton_in_chunks_and_blocks_of_features(
    kind: str, causal: bool, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks of queries, the last one in part, and two or three blocks of features, some of both sides."""
    module = triton("performer")
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "FEATURES", 16)
    agrees(module.performer_attention, "float32", (37, 37 if causal else 20, 21), kind=kind, causal=causal, eps=eps)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_is_kept_but_the_inputs(causal: bool) -> None:
    given = [x.requires_grad_() for x in inputs(512, torch.float32)]
    kept: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fast.performer_attention(*given, causal=causal)
    assert sum(kept) == sum(x.numel() for x in given)


@pytest.fixture(params=["torch", "triton"])
def attention(request: pytest.FixtureRequest) -> Any:
    return fast.performer_attention if request.param == "torch" else triton("performer").performer_attention


@pytest.mark.parametrize("causal", [False, True])
def test_large_exponents_neither_overflow_nor_vanish(attention: Any, causal: bool) -> None:
    """|x|^2 / 2 beyond 88, and keys of very different exponents, early and late."""
    q, k, v, w = inputs(200, torch.float32)
    k = 20 * k * torch.linspace(0.2, 1, 200)[:, None]
    out = attention(20 * q, k, v, w, causal=causal)
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max() * (1 + 1e-5)


def test_without_keys_there_is_nothing(attention: Any) -> None:
    q, k = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 0, 4)
    assert not attention(q, k, torch.ones(1, 1, 0, 5), torch.ones(2, 4)).any()


def test_wrong_arguments_are_refused(attention: Any) -> None:
    q, k, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 2), torch.ones(4, 2)
    with pytest.raises(ValueError, match="positive, trigonometric"):
        attention(q, k, k, w, kind="negative")
    with pytest.raises(ValueError, match="as many keys"):
        attention(q, k, k, w, causal=True)


def test_features_of_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="positive, trigonometric"):
        fast.random_features(torch.ones(2, 2), torch.ones(4, 2), kind="negative")


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("function", [fast.random_features, fast.performer_attention], ids=lambda f: f.__name__)
def test_kernels_keep_what_they_claim(function: Any, dtype: str) -> None:
    assert broken(function, dtype, QUICK) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_triton_kernel_keeps_what_it_claims(dtype: str) -> None:
    assert broken(triton("performer").performer_attention, dtype, Effort(examples=40, climb=0, pooled=0)) == {}


def broken(function: Any, dtype: str, effort: Effort) -> dict[str, str]:
    claims = claims_of(function)
    assert claims is not None
    operator = OPERATORS[claims.operator]
    subject = TorchSubject(function.__name__, function, claims, keywords(operator))
    found = examine(operator, subject, dtype, effort=effort)
    return {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")}
