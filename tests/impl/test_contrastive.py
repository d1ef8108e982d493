"""The contrastive losses of assay keep the bound of the form that they claim, in every regime."""

from __future__ import annotations

from typing import Any

import pytest

from assay.impl import contrastive as tiled
from assay.impl.kernel import claims_of
from assay.impl.triton import contrastive as on_triton
from assay.kernels import keywords
from assay.properties.contrastive import CLIP_LOSS, REGIMES, SIGLIP_LOSS
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests.properties.test_contrastive import special


OPERATORS = [pytest.param(o, id=o.name) for o in (CLIP_LOSS, SIGLIP_LOSS)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("room", [tiled, on_triton], ids=["torch", "triton"])
def test_loss_and_gradients_keep_the_bound(room: Any, operator: Any, regime: str, dtype: str) -> None:
    function = getattr(room, operator.name)
    claims = claims_of(function)
    assert claims is not None
    subject = TorchSubject("kernel", function, claims, keywords(operator))
    trial = Trial(operator, subject, special(operator, regime, dtype))
    trial.agree()
    trial.agree_in_gradients()
