"""The kernel of S4D in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

from assay.impl import s4 as plain
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.drawing import Case, parted
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.properties.s4 import S4D_KERNEL
from assay.properties.trial import Trial
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.oracle import differentiate, evaluate, gradient_oracle, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.runner import TorchSubject


def subject() -> TorchSubject:
    claims = claims_of(plain.s4d_kernel)
    assert claims is not None
    return TorchSubject("ours", plain.s4d_kernel, claims, keywords(S4D_KERNEL))


def arguments(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(n, generator=made, dtype=torch.complex128) for name in ("Lambda", "B", "C")}
    return drawn | {"Lambda": drawn["Lambda"] - 1}


@pytest.mark.parametrize("method", plain.METHODS)
@pytest.mark.parametrize("length", [1, 2, 4, 5, 16, 17, 65])
def test_kernels_of_any_length_are_right(length: int, method: str) -> None:
    """And their gradients, that of dt among them, within the derived bound in float64."""
    given: dict[str, Any] = {name: x.numpy() for name, x in arguments(3, length).items()}
    given |= {"length": length, "method": method, "dt": 0.2}
    trial = Trial(S4D_KERNEL, subject(), Case("float64", given, "ordinary", length))
    trial.agree()
    trial.agree_in_gradients()


def quotient(z: Any) -> Any:
    return array_namespace(z).expm1(z) / z


def series(z: Any) -> Any:
    """The same, as the kernel has it near 0."""
    out = 1 + z * 0
    for k in range(plain.TERMS[torch.complex64], 1, -1):
        out = 1 + z / k * out
    return out


def test_the_mean_of_exp_keeps_its_digits_and_its_derivative() -> None:
    """On both sides of where its series begins, within what the stable quotient may be off by; its derivative, where
    that of the quotient would cancel, within what that of the series may."""
    bounded = Bounded(PRECISIONS["float32"])
    z = torch.tensor([1e-9, 1e-3j, -0.49 + 0.01j, 0.3 - 0.3j, 0.4 - 0.4j, 3j, -20, 6.28j], dtype=torch.complex64)
    (bound,) = (paired(o) for o in evaluate(quotient, bounded, {"z": z.numpy()}))
    (exact,) = oracle(quotient, {"z": z.numpy()}, [bound.parts[1]])
    error = np.abs(parted(plain.average(z).numpy()) - exact.midpoint)
    assert (error <= bound.parts[1] + exact.radius).all()
    near = z[z.abs() < plain.NEAR].requires_grad_()
    (slope,) = torch.autograd.grad(plain.average(near).real.sum(), near)
    weight, given = np.ones(len(near)) + 0j, {"z": near.detach().numpy()}
    _, limit = differentiate(series, bounded, given, [weight], ["z"])
    truth = gradient_oracle(quotient, given, [weight], {"z": paired(limit["z"]).parts[1]})["z"]
    error = np.abs(parted(slope.numpy()) - truth.midpoint)
    # What the series leaves out: 0.5**9 / 10! of the value, 9 times that of 0.5**8 of the derivative.
    assert (error <= paired(limit["z"]).parts[1] + 2.0**-8 * 9 / 3_628_800 + truth.radius).all()
    assert plain.average(torch.zeros(1, dtype=torch.complex64)).item() == 1


def test_no_table_of_all_lags_and_states_exists() -> None:
    """n = 64 and 16,384 lags: nothing that is kept for the backward has more than 2 n sqrt(length) numbers."""
    n, length = 64, 16_384
    given = {name: x.to(torch.complex64).requires_grad_() for name, x in arguments(n).items()}
    most = 0

    def keep(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        plain.s4d_kernel(**given, dt=0.01, length=length)  # type: ignore[arg-type]
    assert most <= 2 * n * 128


@pytest.mark.parametrize("name", ["Lambda", "B", "C"])
def test_wrong_arguments_are_refused(name: str) -> None:
    given: dict[str, Any] = {**arguments(3), "dt": 0.1, "length": 3}
    with pytest.raises(ValueError, match="must be"):
        plain.s4d_kernel(**{**given, name: torch.ones(4, dtype=torch.complex64)})
    with pytest.raises(TypeError, match=name):
        plain.s4d_kernel(**{**given, name: torch.ones(3)})
    with pytest.raises(ValueError, match="negative"):
        plain.s4d_kernel(**{**given, "length": -1})
    with pytest.raises(ValueError, match="method"):
        plain.s4d_kernel(**given, method="euler")


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    found = examine(S4D_KERNEL, subject(), dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
