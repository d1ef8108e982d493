"""The kernel of S4 in torch."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
import pytest
import torch

from assay.impl import dplr as plain
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.dplr import NAMES, S4_KERNEL
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.properties.timed import timed_case
from assay.properties.trial import Trial
from assay.reference import dplr as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.oracle import evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.runner import TorchSubject


KERNELS = {"doubling": plain.s4_kernel, "cauchy": plain.s4_kernel_by_cauchy}


def subject(form: str) -> TorchSubject:
    claims = claims_of(KERNELS[form])
    assert claims is not None
    return TorchSubject(form, KERNELS[form], claims, keywords(S4_KERNEL))


def arguments(n: int, seed: int = 0) -> dict[str, Any]:
    made = S4_KERNEL.regimes["damped"](
        np.random.default_rng(seed), dict.fromkeys(NAMES, (n,)), PRECISIONS["float64"].working
    )
    return {name: np.asarray(x, np.complex128) for name, x in made.items()}


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize("length", [1, 2, 3, 8, 17, 64])
def test_kernels_of_any_length_are_right(length: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And their gradients, that of dt among them, within the derived bound in float64; by Cauchy in chunks."""
    monkeypatch.setattr(plain, "NODES", 10)
    given = arguments(2, length) | {"length": length, "dt": 0.2}
    trial = Trial(S4_KERNEL, subject(form), Case("float64", given, "ordinary", length))
    trial.agree()
    trial.agree_in_gradients()


@pytest.mark.parametrize("form", KERNELS)
def test_without_lags_there_is_nothing(form: str) -> None:
    given: Any = {name: torch.from_numpy(x) for name, x in arguments(2).items()}
    assert KERNELS[form](**given, dt=0.1, length=0).shape == (0,)


@pytest.mark.nightly
def test_16384_lags_of_64_states_on_sampled_lags() -> None:
    """HiPPO's matrix in float32, against exact powers: within the bound of the form, and of the Cauchy kernel in
    float64."""
    case = timed_case(S4_KERNEL, "long", "float32")
    given: dict[str, Any] = dict(case.arguments)
    length = given.pop("length")
    exact = sampled(given, (0, 1, 2, 127, 128, 1000, 8192, 16_383))
    (bound,) = evaluate(
        lambda **rest: reference.by_doubling(**rest, length=length), Bounded(PRECISIONS["float32"]), given
    )
    tensors: Any = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    found = plain.s4_kernel(**tensors, length=length).numpy()
    for lag, wanted in exact.items():
        assert abs(found[lag] - wanted) <= bound.parts[1][lag] + 2.0**-52 * abs(wanted)


def sampled(given: dict[str, Any], lags: tuple[int, ...]) -> dict[int, float]:
    """K at some lags, over complex balls of 400 bits."""
    with flint.ctx.workprec(400):
        Lambda, P, Q, B, C = ([flint.acb(float(z.real), float(z.imag)) for z in given[name]] for name in NAMES)
        n, half = len(B), flint.acb(float(given["dt"])) / 2
        A = [[(Lambda[i] if i == j else 0) - P[i] * Q[j].conjugate() for j in range(n)] for i in range(n)]
        left = flint.acb_mat([[(i == j) - half * A[i][j] for j in range(n)] for i in range(n)])
        power = left.solve(flint.acb_mat([[(i == j) + half * A[i][j] for j in range(n)] for i in range(n)]))
        start = left.solve(flint.acb_mat([[2 * half * b] for b in B]))
        states = dict.fromkeys(lags, start)
        for bit in range(max(lags).bit_length()):
            states = {lag: power * x if lag >> bit & 1 else x for lag, x in states.items()}
            power = power * power
        found = {lag: sum((C[i] * x[i, 0] for i in range(n)), flint.acb(0)).real for lag, x in states.items()}
        assert all(k.rad() < flint.arb(2.0**-60) for k in found.values())
        return {lag: float(k.mid()) for lag, k in found.items()}


def test_sampled_lags_are_those_of_the_kernel() -> None:
    given = arguments(3) | {"dt": 0.2}
    exact = sampled(given, (0, 1, 5, 12))
    tensors: Any = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    (bound,) = evaluate(lambda **rest: reference.by_doubling(**rest, length=13), Bounded(PRECISIONS["float64"]), given)
    found = plain.s4_kernel(**tensors, length=13).numpy()
    assert all(abs(found[lag] - k) <= bound.parts[1][lag] + 2.0**-52 * abs(k) for lag, k in exact.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", KERNELS)
def test_wrong_arguments_are_refused(form: str, name: str) -> None:
    given: Any = {n: torch.from_numpy(x) for n, x in arguments(3).items()} | {"dt": 0.1, "length": 3}
    kernel: Any = KERNELS[form]
    with pytest.raises(ValueError, match="must be"):
        kernel(**{**given, name: torch.ones(4, dtype=torch.complex64)})
    with pytest.raises(TypeError, match=name):
        kernel(**{**given, name: torch.ones(3)})
    with pytest.raises(ValueError, match="negative"):
        kernel(**{**given, "length": -1})


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("form", KERNELS)
def test_the_kernels_keep_what_they_claim(form: str, dtype: str) -> None:
    found = examine(S4_KERNEL, subject(form), dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
