"""The definition of linear attention: its forms and written backward are equal to it in exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.reference import linear_attention as reference
from assay.reference.arithmetic.objects import Exact
from assay.reference.arithmetic.oracle import evaluate


FORMS = [reference.form(sums) for sums in (reference.quadratic, reference.recurrent)]


def integers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float32)


def exact(text: Any, arguments: dict[str, Any]) -> list[Any]:
    return [output.parts[0].tolist() for output in evaluate(text, Exact(), arguments)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", ["relu", "identity"])
@pytest.mark.parametrize("form", FORMS, ids=["quadratic", "recurrent"])
def test_forms_equal_the_definition(form: Any, feature_map: str, causal: bool, normalize: bool) -> None:
    arguments = {
        "q": integers(1, 2, 5, 3),
        "k": integers(1, 2, 5, 3)[:, ::-1],
        "v": integers(1, 2, 5, 4),
        "state": integers(1, 2, 3, 4 + normalize),
        "feature_map": feature_map,
        "causal": causal,
        "normalize": normalize,
        "return_state": True,
    }
    assert exact(form, arguments) == exact(reference.linear_attention, arguments)


def test_brackets_change_nothing() -> None:
    arguments = {"q": integers(1, 1, 4, 3), "k": integers(1, 1, 5, 3), "v": integers(1, 1, 5, 2)}
    assert exact(reference.left, arguments) == exact(reference.right, arguments)
