"""Causal convolution in torch."""

from __future__ import annotations

import pytest
import torch

from assay.impl.convolution import fft_convolve
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.convolution import FFT_CONVOLVE
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.runner import TorchSubject


@pytest.mark.parametrize(
    ("u", "K"), [((4,), (4,)), ((2, 3, 4), (3, 4)), ((1, 4), (3, 1, 4)), ((2, 0), (2, 0)), ((0, 4), (4,))]
)
def test_axes_are_broadcast(u: tuple[int, ...], K: tuple[int, ...]) -> None:
    wanted = torch.broadcast_shapes(u, K)  # type: ignore[no-untyped-call]
    assert fft_convolve(torch.ones(u), torch.ones(K)).shape == wanted


@pytest.mark.parametrize(("u", "K"), [((3,), (4,)), ((2, 3), (4, 3)), ((), (3,))])
def test_wrong_arguments_are_refused(u: tuple[int, ...], K: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="u and K"):
        fft_convolve(torch.ones(u), torch.ones(K))
    with pytest.raises(TypeError, match="K"):
        fft_convolve(torch.ones(4), torch.ones(4, dtype=torch.int64))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    claims = claims_of(fft_convolve)
    assert claims is not None
    subject = TorchSubject("ours", fft_convolve, claims, keywords(FFT_CONVOLVE))
    found = examine(FFT_CONVOLVE, subject, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
