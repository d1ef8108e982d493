"""Long sequences: rows are judged as the outputs of small cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import linear_attention as fast
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.drawing import DTYPES, Case
from assay.properties.linear_attention import LINEAR_ATTENTION, UNNORMALIZED_ATTENTION
from assay.properties.sampled import agree_in_rows
from assay.properties.trial import Trial, Violation
from assay.reference.arithmetic.precision import FLOAT32
from assay.runner import TorchSubject


def case(t: int, d: int, dtype: str = "float32", **keywords_: Any) -> Case:
    random = np.random.default_rng(t)
    arrays = {name: random.standard_normal((1, 1, t, d)).astype(DTYPES[dtype]) for name in "qkv"}
    return Case(dtype, {**arrays, "eps": 0.0, **keywords_}, "ordinary", t)


def subject(function: Callable[..., Any]) -> TorchSubject:
    claims = Claims(LINEAR_ATTENTION.name, form="chunked")
    return TorchSubject(function.__name__, function, claims, keywords(LINEAR_ATTENTION))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("feature_map", ["elu+1", "1+x"])
def test_rows_are_judged_as_the_whole_is(feature_map: str, causal: bool) -> None:
    """The exact values and bounds of all rows, one by one, are those of the whole case."""
    whole = case(9, 3, feature_map=feature_map, causal=causal)
    trial = Trial(LINEAR_ATTENTION, subject(fast.linear_attention), whole)
    trial.agree()
    assert LINEAR_ATTENTION.row is not None
    for i in range(9):
        own = Case("float32", LINEAR_ATTENTION.row(whole.arguments, i), "ordinary", 9)
        small = Trial(LINEAR_ATTENTION, subject(fast.linear_attention), own)
        rows = slice(i, i + 1)
        one, all_ = small.exact[0], trial.exact[0]
        radius = one.radius + all_.radius[..., rows, :]
        assert (np.abs(one.midpoint - all_.midpoint[..., rows, :]) <= radius).all()
        # Of 9 terms; what differs are products of roundings with roundings.
        np.testing.assert_allclose(small.bound[0], trial.bound[0][..., rows, :], rtol=9 * FLOAT32.u)
    headroom = agree_in_rows(LINEAR_ATTENTION, subject(fast.linear_attention), whole, range(9))
    assert headroom == pytest.approx(trial.headroom)


def test_the_wrong_row_is_named() -> None:
    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = False, normalize: bool = True
    ) -> torch.Tensor:
        out = fast.linear_attention(q, k, v, causal=causal, normalize=normalize)
        assert isinstance(out, torch.Tensor)
        return torch.cat((out[..., :250, :], out[..., 250:, :] * 1.01), dim=-2)

    long = case(300, 4, causal=True)
    agree_in_rows(LINEAR_ATTENTION, subject(kernel), long, (0, 100, 249))
    with pytest.raises(Violation, match="row 299: output"):
        agree_in_rows(LINEAR_ATTENTION, subject(kernel), long, (0, 299))


def test_an_operator_has_to_say_what_a_row_depends_on() -> None:
    with pytest.raises(ValueError, match="unnormalized_attention does not say"):
        agree_in_rows(UNNORMALIZED_ATTENTION, subject(fast.linear_attention), case(3, 2), (0,))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_of_65536(dtype: str) -> None:
    """One head of 64 channels, causal: rows at both ends, at the borders of chunks and in between."""
    long = case(65_536, 64, dtype, causal=True)
    headroom = agree_in_rows(LINEAR_ATTENTION, subject(fast.linear_attention), long, (0, 1, 64, 1023, 40_000, 65_535))
    assert headroom > 1e-6
