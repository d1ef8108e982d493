"""HiPPO in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.impl.hippo import hippo_matrices
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.hippo import HIPPO_MATRICES
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.reference import hippo as reference
from assay.runner import TorchSubject


@pytest.mark.parametrize("measure", ["lmu", "lagt"])
def test_whole_numbers_and_halves_are_exact(measure: str) -> None:
    for got, want in zip(
        hippo_matrices(9, measure=measure, dtype=torch.float64),
        reference.hippo_matrices(9, measure=measure, xp=np),
        strict=True,
    ):
        np.testing.assert_array_equal(got.numpy(), want)


def test_dtype_and_device() -> None:
    assert hippo_matrices(2)[0].dtype == torch.get_default_dtype()
    a, b = hippo_matrices(2, dtype=torch.float16, device="meta")
    assert (a.dtype, a.device.type, b.shape) == (torch.float16, "meta", (2,))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="legs, legt"):
        hippo_matrices(2, measure="legendre")
    with pytest.raises(ValueError, match="negative"):
        hippo_matrices(-1)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    claims = claims_of(hippo_matrices)
    assert claims is not None
    found = examine(
        HIPPO_MATRICES, TorchSubject("ours", hippo_matrices, claims, keywords(HIPPO_MATRICES)), dtype, effort=QUICK
    )
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
