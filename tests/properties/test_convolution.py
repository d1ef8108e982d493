"""The contract of causal convolution: wrong kernels are named, each property rejects a wrong kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from assay.impl.convolution import fft_convolve
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.convolution import FFT_CONVOLVE
from assay.properties.judgement import examine
from assay.properties.run import QUICK, Effort
from assay.runner import TorchSubject


Call = Callable[[Tensor, Tensor], Tensor]


def subject(function: Call, **claims: str) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(FFT_CONVOLVE.name, **claims), keywords(FFT_CONVOLVE))  # type: ignore[arg-type]


def to(length: Callable[[int], int], shown: int = 0) -> Call:
    """With zeros to some length."""

    def kernel(u: Tensor, K: Tensor) -> Tensor:
        t = u.shape[-1]
        n = max(length(t), 1)
        y = torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(K, n), n)
        return torch.nn.functional.pad(y, (0, t))[..., shown : shown + t].contiguous()

    return kernel


def test_unclaimed_transforms_are_named_where_the_sums_are_claimed() -> None:
    effort = replace(QUICK, shrink_seconds=0.2, robustness=0, shares=0)
    found = examine(
        FFT_CONVOLVE, subject(fft_convolve, form="direct"), "float32", effort=effort, only=("agrees_with_oracle",)
    )
    (result,) = found.results
    assert result.verdict == "fail"
    assert next((f.kind, f.name) for f in result.diagnosis) == ("form", "fft")


WRONG: dict[str, tuple[Call, str | None]] = {
    "circle": (to(lambda t: t), "circular"),
    "short": (to(lambda t: 2 * t - 2 if t > 1 else 1), "padding_one_position_short"),
    "late": (to(lambda t: 2 * t, shown=1), "shown_one_position_late"),
    "turned": (lambda u, K: fft_convolve(u, K.flip(-1)), "kernel_turned"),
    "correlation": (lambda u, K: fft_convolve(u.flip(-1), K).flip(-1), "correlation"),
    "half": (lambda u, K: fft_convolve(u.half().float(), K), None),
}


AT_EVERY_CHANGE = ("circle", "short")


@pytest.mark.parametrize(
    "name", [n if n in AT_EVERY_CHANGE else pytest.param(n, marks=pytest.mark.nightly) for n in WRONG]
)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = WRONG[name]
    effort = replace(QUICK, examples=16, shrink_seconds=0.2, robustness=0, shares=0)
    (result,) = examine(FFT_CONVOLVE, subject(function), "float32", effort=effort, only=("agrees_with_oracle",)).results
    assert result.verdict == "fail"
    if told is not None:
        assert told in {f.name for f in result.diagnosis}


def changed(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
    """Ours, with another output."""
    return lambda u, K: change(fft_convolve(u, K), u, K)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Call] = {
    "it_is_the_sum": to(lambda t: t),
    "an_impulse_shows_the_kernel": to(lambda t: t),
    "it_commutes": changed(lambda y, u, K: y + K.sum(dim=-1, keepdim=True)),
    "it_commutes_with_time": to(lambda t: t),
    "future_weighs_nothing": to(lambda t: t),
    "inputs_add": changed(lambda y, u, K: y + 1),
    "channels_are_apart": changed(lambda y, u, K: y.cumsum(dim=1)),
}


def test_every_property_has_a_killer() -> None:
    assert {p.name for p in FFT_CONVOLVE.properties} == set(KILLERS)


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=30, shrink_seconds=0.2, climb=0, stop="each")
    (result,) = examine(FFT_CONVOLVE, subject(KILLERS[name]), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


def test_every_property_holds_for_a_right_kernel() -> None:
    names = tuple(KILLERS)
    effort = Effort(examples=8, climb=0, shares=99, stop="each")
    found = examine(FFT_CONVOLVE, subject(fft_convolve, form="fft"), "float32", effort=effort, only=names)
    assert {r.property: (r.verdict, r.message) for r in found.results} == dict.fromkeys(names, ("pass", ""))
