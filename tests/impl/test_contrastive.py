"""The contrastive losses of assay keep the bound of the form that they claim, in every regime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import contrastive as tiled
from assay.impl.kernel import claims_of
from assay.impl.triton import contrastive as on_triton
from assay.kernels import keywords
from assay.properties.contrastive import CLIP_LOSS, REGIMES, SIGLIP_LOSS
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests.properties.test_contrastive import special


def subject(room: Any, operator: Any) -> TorchSubject:
    function = getattr(room, operator.name)
    claims = claims_of(function)
    assert claims is not None
    return TorchSubject("kernel", function, claims, keywords(operator))


OPERATORS = [pytest.param(o, id=o.name) for o in (CLIP_LOSS, SIGLIP_LOSS)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("room", [tiled, on_triton], ids=["torch", "triton"])
def test_loss_and_gradients_keep_the_bound(room: Any, operator: Any, regime: str, dtype: str) -> None:
    trial = Trial(operator, subject(room, operator), special(operator, regime, dtype))
    trial.agree()
    trial.agree_in_gradients()


@pytest.mark.parametrize("positives", [False, True], ids=["pairs", "positives"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("room", [tiled, on_triton], ids=["torch", "triton"])
def test_several_tiles_keep_the_bound(room: Any, operator: Any, positives: bool, monkeypatch: Any) -> None:
    """37 pairs: two blocks in Triton; here tiles of 8 x 13, on the diagonal and off it."""
    monkeypatch.setattr(tiled, "ROWS", 8)
    monkeypatch.setattr(tiled, "COLUMNS", 13)
    case = special(operator, "aligned", "float32", n=37, d=3)
    if positives:
        own = np.random.default_rng(5).random((37, 37)) < 0.1
        own[3] = False  # an image that belongs to no text
        case = replace(case, arguments={**case.arguments, "positives": own})
    trial = Trial(operator, subject(room, operator), case)
    trial.agree()
    trial.agree_in_gradients()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("room", [tiled, on_triton], ids=["torch", "triton"])
def test_shapes_that_mean_nothing_are_refused(room: Any, operator: Any) -> None:
    loss, x = getattr(room, operator.name), torch.ones(3, 2)
    given = {p.name: 1.0 for p in operator.parameters}
    with pytest.raises(ValueError, match=r"must both be \[n, d\], not \[3, 2\] and \[2, 2\]"):
        loss(x, x[:2], **given)
    with pytest.raises(ValueError, match=r"positives must be \[3, 3\], not \[2, 2\]"):
        loss(x, x, positives=torch.ones(2, 2, dtype=torch.bool), **given)
    with pytest.raises(TypeError, match="image must be of a floating-point dtype"):
        loss(x.int(), x.int(), **given)
