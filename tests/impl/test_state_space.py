"""Linear state spaces in torch: however positions are cut into chunks, and from 1 lag to many."""

from __future__ import annotations

import pytest
import torch

from assay.impl import state_space as plain
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties import OPERATORS
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.properties.trial import Trial
from assay.runner import TorchSubject


KERNELS = {"ssm_scan": plain.ssm_scan, "ssm_kernel": plain.ssm_kernel}


def subject(name: str) -> TorchSubject:
    claims = claims_of(KERNELS[name])
    assert claims is not None
    return TorchSubject(name, KERNELS[name], claims, keywords(OPERATORS[name]))


def arguments(t: int, *, b: int = 2, n: int = 3) -> dict[str, torch.Tensor]:
    """A contraction that turns, as float64."""
    made = torch.Generator().manual_seed(t)
    skew = torch.randn(n, n, generator=made, dtype=torch.float64)
    one = torch.eye(n, dtype=torch.float64)
    a = 0.1 * (skew - skew.T) - 0.01 * one
    shapes = {"u": (b, t), "Bb": (n,), "C": (n,), "state": (b, n)}
    drawn = {name: torch.randn(shape, generator=made, dtype=torch.float64) for name, shape in shapes.items()}
    return {"u": drawn["u"], "Ab": torch.linalg.solve(one - a, one + a), **{k: drawn[k] for k in ("Bb", "C", "state")}}


@pytest.mark.parametrize("t", [1, 2, 63, 64, 65, 129, 200])
def test_chunks_and_rests_are_right(t: int) -> None:
    """Outputs, state and gradients, within the derived bound in float64."""
    given = {name: x.numpy() for name, x in arguments(t).items()}
    trial = Trial(OPERATORS["ssm_scan"], subject("ssm_scan"), Case("float64", given, "ordinary", t))
    trial.agree()
    trial.agree_in_gradients()


@pytest.mark.parametrize("length", [2, 3, 4, 5, 16, 17, 100])
def test_kernels_of_any_length_are_right(length: int) -> None:
    given = {name: x.numpy() for name, x in arguments(0).items() if name in ("Ab", "Bb", "C")} | {"length": length}
    trial = Trial(OPERATORS["ssm_kernel"], subject("ssm_kernel"), Case("float64", given, "ordinary", length))
    trial.agree()
    trial.agree_in_gradients()


def test_the_scan_of_an_impulse_is_the_kernel() -> None:
    """Over 4,096 positions, in float64: both within what their forms allow, which for a contraction is little."""
    given = arguments(0, b=1)
    u = torch.zeros(1, 4096, dtype=torch.float64)
    u[0, 0] = 1
    response, _ = plain.ssm_scan(u, given["Ab"], given["Bb"], given["C"])
    kernel = plain.ssm_kernel(given["Ab"], given["Bb"], given["C"], 4096)
    # A term goes through 12 squarings, of 3 products each, and 64 steps from chunk to chunk; powers are contractions.
    size = given["C"].norm() * given["Bb"].norm()
    assert (response[0] - kernel).abs().max() <= 2 * (12 + 64) * 3 * 3 * 2.0**-53 * size


def test_without_positions_there_is_nothing_but_the_state() -> None:
    given = arguments(0)
    y, state = plain.ssm_scan(**given)
    assert y.shape == (2, 0)
    assert torch.equal(state, given["state"])
    assert state.data_ptr() != given["state"].data_ptr()
    assert not plain.ssm_scan(given["u"], given["Ab"], given["Bb"], given["C"])[1].any()
    assert plain.ssm_kernel(given["Ab"], given["Bb"], given["C"], 0).shape == (0,)


@pytest.mark.parametrize("name", ["u", "Ab", "Bb", "C", "state"])
def test_wrong_arguments_are_refused(name: str) -> None:
    given = arguments(3)
    with pytest.raises(ValueError, match=r"must have the axes|must be"):
        plain.ssm_scan(**{**given, name: torch.ones(7, 7, 7)})
    with pytest.raises(TypeError, match=name):
        plain.ssm_scan(**{**given, name: given[name].long()})


def test_a_negative_length_is_refused() -> None:
    given = arguments(3)
    with pytest.raises(ValueError, match="length"):
        plain.ssm_kernel(given["Ab"], given["Bb"], given["C"], -1)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_keep_what_they_claim(name: str, dtype: str) -> None:
    found = examine(OPERATORS[name], subject(name), dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


def test_a_vector_may_be_spread_over_all_of_memory() -> None:
    """torch's own product with such a vector is wrong. No page of what lies between the elements is ever touched."""
    B = torch.tensor([1.0, -2.0, 4.0])
    far = torch.empty(2**31 + 3).as_strided((3,), (2**30 + 1,)).copy_(B)
    A, C, u = torch.tensor([[0.5, 1.0, 0.0], [2.0, 0.25, 1.0], [1.0, 0.0, 0.5]]), torch.ones(3), torch.ones(1, 3)
    assert torch.equal(plain.ssm_kernel(A, far, C, 5), plain.ssm_kernel(A, B, C, 5))
    assert torch.equal(plain.ssm_scan(u, A, far, C)[0], plain.ssm_scan(u, A, B, C)[0])
