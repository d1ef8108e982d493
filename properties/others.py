"""Rules by which other suites accept a kernel, to be scored on the same kernels and cases as the derived bound.

Each is a function (got, exact, naive, dtype) -> accepted. `got` and `naive` are in the dtype, `exact` in extended
precision; naive is a right kernel that computes every step in the dtype. A rule compares all numbers of one array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from assay.properties.drawing import DTYPES, Values


Rule = Callable[[Values, Values, Values, str], bool]

TORCH = {"float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5)}
"""rtol and atol of torch.testing.assert_close."""


def _close(got: Values, reference: Values, rtol: float, atol: float, *, equal_nan: bool = False) -> bool:
    """|got - reference| <= atol + rtol |reference|, every element, in double."""
    a, b = got.astype(np.float64), reference.astype(np.float64)
    return bool(np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan))


def _returned(exact: Values, dtype: str) -> Values:
    """The exact answer as these suites keep it: in the dtype of the kernel."""
    with np.errstate(all="ignore"):
        return exact.astype(np.float64).astype(DTYPES[dtype])


def assert_close(got: Values, exact: Values, naive: Values, dtype: str) -> bool:
    """torch.testing.assert_close without tolerances: by dtype, float32 1.3e-6 and 1e-5, float16 1e-3 and 1e-5,
    bfloat16 1.6e-2 and 1e-5 (rtol, atol). Shape and dtype must match.

    Source: PyTorch, torch/testing/_comparison.py.
    """
    rtol, atol = TORCH[dtype]
    same = got.shape == exact.shape and got.dtype == DTYPES[dtype]
    return same and _close(got, _returned(exact, dtype), rtol, atol)


def allclose_hundredth(got: Values, exact: Values, naive: Values, dtype: str) -> bool:
    """allclose with rtol = atol = 1e-2 in every dtype.

    Source: BackendBench, BackendBench/eval.py (there with equal_nan); flashinfer-bench's default has the same figures.
    """
    return _close(got, _returned(exact, dtype), 1e-2, 1e-2, equal_nan=True)


def twice_naive(got: Values, exact: Values, naive: Values, dtype: str) -> bool:
    """max |got - ref| <= 2 max |naive - ref| + 1e-5, ref the float32 answer cast back to the dtype.

    Source: flash-attention 2, tests/test_flash_attn.py.
    """
    reference = _returned(exact.astype(np.float32), dtype).astype(np.float64)
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(np.float64) - reference).max(initial=0)
        allowed = 2 * np.abs(naive.astype(np.float64) - reference).max(initial=0) + 1e-5
    return bool(off <= allowed)


def rmse_ratio(got: Values, exact: Values, naive: Values, dtype: str) -> bool:
    """RMSE(ref - got) / (RMS(ref) + 1e-8) < 0.005; accepted at once if max |ref - got| <= 1e-6.

    Source: flash-linear-attention, fla/utils/_testing.py, assert_close outside CI, with the ratio that its tests use
    most.
    """
    reference = _returned(exact, dtype).astype(np.float64)
    with np.errstate(all="ignore"):
        off = reference - got.astype(np.float64)
        if np.abs(off).max(initial=0) <= 1e-6:
            return True
        return bool(np.sqrt(np.mean(off**2)) / (np.sqrt(np.mean(reference**2)) + 1e-8) < 0.005)


def by_dtype(got: Values, exact: Values, naive: Values, dtype: str) -> bool:
    """allclose with rtol = atol = 1e-4 in float32, 1e-2 in float16 and bfloat16. The shape must match.

    Source: KernelBench, src/kernelbench/eval.py.
    """
    tolerance = 1e-4 if dtype in ("float32", "float64") else 1e-2
    return got.shape == exact.shape and _close(got, _returned(exact, dtype), tolerance, tolerance)


RULES: Mapping[str, Rule] = {
    "torch.testing.assert_close": assert_close,
    "allclose 1e-2, 1e-2 (BackendBench)": allclose_hundredth,
    "2 x naive + 1e-5 (flash-attention)": twice_naive,
    "RMSE ratio 0.005 (FLA)": rmse_ratio,
    "allclose by dtype (KernelBench)": by_dtype,
}
