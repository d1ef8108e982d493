"""Our kernels of softmax attention keep the bound of what they claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.impl import attention as fast
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.attention import SOFTMAX_ATTENTION
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.runner import TorchSubject


OPERATOR = SOFTMAX_ATTENTION
KERNELS = (fast.softmax_attention, fast.softmax_attention_plain)


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # torch warns that vmap of its own attention is slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.__name__)
def test_kernels_keep_what_they_claim(function: Any, dtype: str) -> None:
    claims = claims_of(function)
    assert claims is not None
    subject = TorchSubject(function.__name__, function, claims, keywords(OPERATOR))
    found = examine(OPERATOR, subject, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.__name__)
def test_without_keys_there_is_nothing(function: Any) -> None:
    q, k = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 0, 4)
    out, lse = function(q, k, torch.ones(1, 1, 0, 5), return_lse=True)
    assert out.shape == (1, 2, 3, 5)
    assert not out.any()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.__name__)
def test_a_negative_scale_meets_the_causal_mask(function: Any) -> None:
    """torch 2.13 multiplies the minus infinity of its causal mask by the scale, in its flash kernel for the CPU."""
    q, k, v = torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1)
    for scale in (-1.0, 0.0):
        assert function(q, k, v, causal=True, scale=scale).flatten().tolist() == [1.0, 1.5]


@pytest.mark.parametrize("function", KERNELS, ids=lambda f: f.__name__)
def test_wrong_arguments_are_refused(function: Any) -> None:
    q, k = torch.ones(1, 3, 2, 2), torch.ones(1, 2, 2, 2)
    with pytest.raises(ValueError, match="do not divide"):
        function(q, k, k)
    with pytest.raises(ValueError, match="alignment"):
        function(q, q, q, alignment="sideways")
