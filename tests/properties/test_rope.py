"""The contract of rope: each property holds for a right kernel and rejects some wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import rope as fast
from assay.properties import OPERATORS
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.robustness import checks
from assay.properties.run import Effort
from assay.properties.trial import Trial, Violation
from tests import kernels
from tests.properties.test_judgement import subject


ROPE = OPERATORS["rope"]


def full(change: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel with every keyword, ours with one thing changed."""

    def kernel(
        x: torch.Tensor,
        position: torch.Tensor,
        *,
        base: float = 10000.0,
        frequencies: torch.Tensor | None = None,
        layout: str = "half",
        rotary_dim: int | None = None,
        sections: tuple[int, ...] | None = None,
        attention_factor: float = 1.0,
    ) -> torch.Tensor:
        given: dict[str, Any] = {
            "base": base,
            "frequencies": frequencies,
            "layout": layout,
            "rotary_dim": rotary_dim,
            "sections": sections,
            "attention_factor": attention_factor,
        }
        return change(fast.rope, x, position, given)  # type: ignore[no-any-return]

    return kernel


def _unrotated(x: torch.Tensor, given: dict[str, Any]) -> int:
    return x.shape[-1] if given["rotary_dim"] is None else given["rotary_dim"]


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Callable[..., Any]] = {
    "relative_position": lambda f, x, p, given: f(x, p + p.abs() // 2, **given),
    "common_shift": lambda f, x, p, given: f(x, p * p % 1009, **given),
    "norm_is_kept": lambda f, x, p, given: f(x, p, **given) * 1.001,
    "rotations_compose": lambda f, x, p, given: f(x, p + 1, **given),
    "inverse": lambda f, x, p, given: f(x, p.abs(), **given),
    "position_zero_is_identity": lambda f, x, p, given: f(x, p + 1, **given),
    "unrotated_channels_pass": lambda f, x, p, given: torch.cat(
        [f(x, p, **given)[..., : _unrotated(x, given)], 2 * x[..., _unrotated(x, given) :]], dim=-1
    ),
    "layouts_permute": lambda f, x, p, given: f(x, p, **{**given, "layout": "half"}),
    "doubles_with_x": lambda f, x, p, given: f(x, p, **given) + x * x,
    "positions_scale_against_frequencies": lambda f, x, p, given: f(x, p, **{**given, "frequencies": None}),
}


def test_every_property_has_a_killer() -> None:
    assert set(KILLERS) == {p.name for p in ROPE.properties}


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=60, shrink_seconds=0.2)
    (result,) = examine(ROPE, subject(full(KILLERS[name])), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_our_kernel_satisfies_every_property(dtype: str) -> None:
    found = examine(ROPE, subject(fast.rope, form="reduced", under=("vmap",)), dtype)
    unclaimed = ("works_under_compile", "works_under_autocast")
    assert {r.property: r.message for r in found.results if r.verdict != "pass" and r.property not in unclaimed} == {}


@pytest.mark.parametrize("name", ["relative_position", "common_shift", "norm_is_kept", "inverse", "rotations_compose"])
def test_a_consistent_wrong_layout_satisfies_every_identity(name: str) -> None:
    """Why the oracle does the killing: on ordinary numbers the identities hold for any consistent pairing."""
    check = next(c for c in checks(ROPE) if c.name == name)
    for number in range(20):
        x = np.random.default_rng(number).standard_normal((1, 2, 8, 16)).astype(np.float32)
        arguments = {"x": x, "position": np.arange(8) + number, "base": 10000.0, "attention_factor": 1.0}
        trial = Trial(ROPE, subject(kernels.interleaved), Case("float32", arguments, "ordinary", number))
        assert check.holds(trial)
        with pytest.raises(Violation):
            trial.agree()
