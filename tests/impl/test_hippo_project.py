"""The projection of a history in torch, and 256 coefficients over 10,000 samples against the exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl.hippo_project import hippo_project
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.hippo_project import HIPPO_PROJECT
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.reference import hippo_project as reference
from assay.reference.arithmetic.accumulated import adjoint_bound
from assay.reference.arithmetic.objects import Ball, enclosure
from assay.reference.arithmetic.oracle import evaluate
from assay.reference.arithmetic.precision import FLOAT32, PRECISIONS
from assay.runner import TorchSubject
from tests.reconstruction import COEFFICIENTS, draw, reconstruction, remembered, signal


Values = np.ndarray[Any, Any]


def history(t: int) -> Values:
    return np.random.default_rng(t).standard_normal(t).astype(np.float32)


@pytest.mark.parametrize("method", reference.METHODS)
def test_its_derivatives(method: str) -> None:
    for t, n in ((1, 3), (7, 1), (6, 4), (3, 5)):
        f = torch.from_numpy(history(t)).double().requires_grad_()
        torch.autograd.gradcheck(lambda f, n=n: hippo_project(f, n, method=method), f)
        torch.autograd.gradgradcheck(lambda f, n=n: hippo_project(f, n, method=method), f)


def test_wrong_arguments_are_refused() -> None:
    f = torch.ones(3)
    with pytest.raises(ValueError, match="only the measure legs"):
        hippo_project(f, 2, measure="lmu")
    with pytest.raises(ValueError, match="method must be"):
        hippo_project(f, 2, method="tustin")
    with pytest.raises(ValueError, match="f must be"):
        hippo_project(f[None], 2)
    with pytest.raises(TypeError, match="f"):
        hippo_project(f.long(), 2)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    claims = claims_of(hippo_project)
    assert claims is not None
    kernel = TorchSubject("ours", hippo_project, claims, keywords(HIPPO_PROJECT))
    found = examine(HIPPO_PROJECT, kernel, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


def test_more_coefficients_lose_less(tmp_path: Path) -> None:
    """The projection is orthonormal: what is lost is what the coefficients lack of the signal's square, and less with
    each. The picture of the documentation shows it."""
    kept = [float(np.sum(remembered(n) ** 2)) for n in COEFFICIENTS]
    assert 0 < kept[0] < kept[1] < kept[2] < float(np.mean(signal() ** 2))
    off = [float(np.mean((reconstruction(remembered(n)) - signal()) ** 2)) for n in COEFFICIENTS]
    assert off[0] > off[1] > off[2]
    draw(tmp_path / "reconstruction.svg")
    assert (tmp_path / "reconstruction.svg").read_text().count("reconstruction") == 1


# Long histories -----------------------------------------------------------------------------------------------------


def sampled(f: Values, n: int, method: str, k: int, coefficients: list[int]) -> tuple[Values, Values]:
    """The exact c_k at some coefficients, and how far a kernel in float32 may be from them."""
    given = {"f": f[: k + 1], "n": n, "method": method, "rows": (k,)}
    ball = Ball(1024)
    (c,) = evaluate(reference.in_antidiagonals, ball, given)
    with ball.context():
        exact, radius = enclosure(c)
    assert radius.max() < 2.0**-60
    return exact[0, coefficients], by_hand(f[: k + 1], n, method, coefficients)


def by_hand(f: Values, n: int, method: str, coefficients: list[int]) -> Values:
    """The adjoint bound of the text in antidiagonals for the last sample, its roundings written out.

    A place (k, i) rounds s_i, two quotients, two differences, two products, their sum, a product with s_i, and a prefix
    sum. Each use of s_i is charged by itself, while the tape adds up, with their signs,
    what one of them moves: so this is no less than `adjoint_bound`, of which it has the rest: first order, and theta.
    """
    ahead, of = reference.WEIGHTS[method]
    part, t = ahead / of, len(f)
    i, root = np.arange(n), np.sqrt(2 * np.arange(n) + 1)
    line = np.concatenate([np.zeros(n), f.astype(np.float64)[::-1], np.zeros(n)])
    rows = t - 1 + n

    def factors(m: int) -> tuple[Values, Values]:
        k = m - i
        below = np.where(k > 0, k + part * (i + 1), np.inf)
        return (k - (1 - part) * (i + 1)) / below, root / below

    c, sums, before = (np.zeros(n) for _ in range(3))
    of_c, of_sums, values = np.zeros((rows, n)), np.zeros((rows, n)), np.zeros((rows, n))
    for m in range(rows):
        shifted, older = (np.concatenate([[0.0], x[:-1]]) for x in (sums, before))
        old, new = factors(m)
        u = line[n + t - 1 - m : 2 * n + t - 1 - m]
        first = u - (1 - part) * older
        given = first - part * shifted
        held, entering = old * c, new * given
        c = held + entering
        if m < n:
            c[m] = u[0] if not m else 0
        inside = (m - i > 0) & (m - i < t)
        of_c[m] = inside * (2 * np.abs(held) + np.abs(new) * (np.abs(first) + np.abs(given)) + 3 * np.abs(entering))
        of_c[m] += inside * np.abs(c)
        before, sums = sums, shifted + root * c
        of_sums[m] = (m - i >= 0) * (m - i < t) * (2 * np.abs(root * c) + np.abs(sums))
        values[m] = c
    bounds, exact = [], []
    for j in coefficients:
        total, pull, q, later = 0.0, np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
        y, old = np.zeros(n), np.zeros(n)
        for m in reversed(range(t + j)):
            # y, the cotangents of what has this k + i, and Z: those of the prefix sums.
            now = np.zeros(n + 1)
            now[:-1] = pull[1:] - part * q[1:] - (1 - part) * later[1:]
            y = old * y + root * now[:-1]
            y[j] += m == t - 1 + j
            y *= (m - i >= 0) & (m - i < t)
            total += np.abs(y) @ of_c[m] + np.abs(now[:-1]) @ of_sums[m]
            old, new = factors(m)
            later, q = q, np.append(new * y, 0.0)
            pull = now
        bounds.append(total * FLOAT32.u)
        exact.append(values[t - 1 + j][j])
    theta = max(bounds) / np.abs(exact).max() if any(bounds) else 0.0
    assert theta < 1 / 16
    return np.array(bounds) * (1 + theta)


@pytest.mark.parametrize("method", ["bilinear", "backward"])
def test_what_is_written_out_is_the_adjoint_bound(method: str) -> None:
    t, n, places = 24, 6, [0, 2, 5]
    f = history(t)
    given = {"f": f, "n": n, "method": method, "rows": (t - 1,)}
    tape = adjoint_bound(reference.in_antidiagonals, given, PRECISIONS["float32"], [(0, j) for j in places])
    hand = by_hand(f, n, method, places)
    assert (tape <= hand).all()
    assert (hand < 4 * tape).all()


def judged(t: int, n: int, method: str, samples: list[int], coefficients: list[int]) -> float:
    f = history(t)
    got = hippo_project(torch.from_numpy(f), n, method=method).numpy()
    headroom = 0.0
    for k in samples:
        exact, bound = sampled(f, n, method, k, coefficients)
        off = np.abs(got[k, coefficients] - exact)
        assert (off <= bound).all(), (k, off, bound)
        headroom = max(headroom, float((off[bound > 0] / bound[bound > 0]).max(initial=0)))
    return headroom


def test_a_history_of_300_samples() -> None:
    assert 1e-6 < judged(300, 64, "bilinear", [0, 1, 40, 299], [0, 1, 30, 63]) < 0.5


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["bilinear", "backward"])
def test_a_history_of_10000_samples(method: str) -> None:
    """256 coefficients in float32: exact values to 18 digits, at samples from the first to the last."""
    samples, coefficients = [0, 1, 2, 100, 1023, 5000, 9999], [0, 1, 2, 17, 128, 255]
    assert 1e-6 < judged(10_000, 256, method, samples, coefficients) < 0.5
