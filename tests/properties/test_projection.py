"""The contract of random projections: the right sampler passes, each mutant is rejected, each test rejects one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from assay.impl.kernel import Claims
from assay.impl.projection import random_projection
from assay.kernels import keywords, resolve
from assay.properties.contract import Operator, Positive, Statistic, Tensor
from assay.properties.drawing import Values
from assay.properties.judgement import examine
from assay.properties.matrix import Bench, kill
from assay.properties.mutants import right
from assay.properties.projection import RANDOM_PROJECTION, _drawn
from assay.properties.robustness import checks
from assay.properties.run import Effort
from assay.replay import replay, store_all
from assay.runner import TorchSubject


FEW = replace(
    RANDOM_PROJECTION,
    settings=tuple(a for a in RANDOM_PROJECTION.settings if a["d"] == 4 or (a["scaling"] != "chi" and a["d"] == 16)),
)
"""The small settings, which reject every mutant."""
NAMES = tuple(c.name for c in checks(RANDOM_PROJECTION) if not c.hosted)
ONCE = Effort(stop="each")

# For each test, a mutant that it must reject by itself.
KILLERS = {
    "rows_are_orthogonal": "orthogonal ignored",
    "lengths_are_sqrt_d": "lengths always drawn",
    "lengths_are_chi": "lengths of d - 1",
    "directions_are_uniform": "signs of QR kept",
    "rows_are_independent": "lengths of the rows of the same matrix",
    "seeds_are_independent": "seed halved",
    "estimates_are_unbiased": "unit lengths",
    "errors_are_exact": "first block again",
    "same_twice": "draws on",
}


def failed(operator: Operator, subject: Any, **options: Any) -> set[str]:
    found = examine(operator, subject, "float32", effort=ONCE, **options)
    return {r.property for r in found.results if r.verdict in ("fail", "error")}


def test_every_test_has_a_killer() -> None:
    assert set(KILLERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_test_rejects_a_mutant_by_itself(name: str) -> None:
    mutant = next(m for m in Bench(FEW, "float32").mutants if m.name == KILLERS[name])
    assert name in failed(FEW, mutant.kernel(), only=(name,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_right_sampler_passes_in_small_settings(dtype: str) -> None:
    found = examine(FEW, right(FEW, dtype), dtype, effort=ONCE)
    broken = {r.property: r.message for r in found.results if r.verdict == "fail"}
    assert broken == {}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_right_sampler_passes(dtype: str) -> None:
    found = examine(RANDOM_PROJECTION, right(RANDOM_PROJECTION, dtype), dtype)
    broken = {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}
    assert broken == {}


@pytest.mark.parametrize("name", RANDOM_PROJECTION.mutants)
def test_every_mutant_is_rejected(name: str) -> None:
    bench = Bench(FEW, "float32")
    outcome = kill(bench, next(m for m in bench.mutants if m.name == name))
    assert outcome.fate == "killed"


def test_the_signs_of_qr_are_rejected_in_seconds() -> None:
    bench = Bench(RANDOM_PROJECTION, "float32")
    started = time.perf_counter()
    outcome = kill(bench, next(m for m in bench.mutants if m.name == "signs of QR kept"))
    assert (outcome.fate, outcome.by) == ("killed", ("directions_are_uniform",))
    assert time.perf_counter() - started < 30


def test_what_rejects_no_null_kernel_leaves_it_undecided() -> None:
    """Rows of zeros are orthogonal."""
    weak = replace(FEW, properties=FEW.properties[:1])
    found = examine(weak, right(weak, "float32"), "float32")
    assert found.verdict == "undecided"
    assert "in only 0 of" in next(r.message for r in found.results if r.verdict == "undecided")


def test_a_right_kernel_with_fewer_keywords_passes() -> None:
    """In fewer than twenty settings, each of hundreds of samples."""

    def kernel(r: int, d: int, *, seed: int) -> torch.Tensor:
        return random_projection(r, d, seed=seed, dtype=torch.float32)

    subject = TorchSubject("kernel", kernel, Claims("random_projection"), keywords(RANDOM_PROJECTION))
    assert examine(FEW, subject, "float32").verdict == "pass"


@pytest.mark.parametrize("error", [RuntimeError("the device is on fire"), NotImplementedError("no rows")])
def test_a_kernel_that_raises_is_told(error: Exception) -> None:
    def kernel(r: int, d: int, *, seed: int) -> torch.Tensor:
        raise error

    subject = TorchSubject("kernel", kernel, Claims("random_projection"), keywords(RANDOM_PROJECTION))
    found = examine(FEW, subject, "float32")
    assert found.verdict == ("skipped" if isinstance(error, NotImplementedError) else "error")
    assert any(str(error) in r.message for r in found.results)


def test_settings_need_samples_and_have_no_inputs() -> None:
    for change in ({"samples": 1}, {"inputs": (Tensor("x", "r d"),)}, {"parameters": (Positive("s", 1.0, 1.0, 2.0),)}):
        with pytest.raises(ValueError, match="settings need samples"):
            replace(RANDOM_PROJECTION, **change)
    with pytest.raises(ValueError, match="at least one input"):
        replace(RANDOM_PROJECTION, settings=())


def test_a_kernel_that_draws_from_the_generator_of_others_is_told() -> None:
    def kernel(r: int, d: int, *, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.randn(r, d)

    subject = TorchSubject("kernel", kernel, Claims("random_projection"), keywords(RANDOM_PROJECTION))
    only = ("random_state_is_untouched",)
    with torch.random.fork_rng(devices=()):
        found = examine(RANDOM_PROJECTION, subject, "float32", effort=ONCE, only=only)
    assert [r.verdict for r in found.results] == ["fail"]


def test_laws_are_told() -> None:
    assert all(isinstance(p.law, str) and p.law for p in RANDOM_PROJECTION.properties)
    assert sum(isinstance(p, Statistic) for p in RANDOM_PROJECTION.properties) == 6


def test_a_counterexample_is_stored_and_replayed(tmp_path: Path) -> None:
    """The first setting alone: its seed says which samples."""
    few = replace(RANDOM_PROJECTION, settings=RANDOM_PROJECTION.settings[:1])
    (kernel,) = resolve("random_projection=tests.properties.test_projection:uniform")
    found = examine(few, kernel.subject(), "float32", effort=Effort(stop="each"), only=("lengths_are_chi",))
    assert store_all(kernel, found, tmp_path) == ""
    fails, told = replay(Path(found.results[0].stored))
    assert fails
    assert "still fails: a right kernel would show this" in told[-1]


def uniform(r: int, d: int, *, seed: int) -> torch.Tensor:
    return torch.rand(r, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("d", "along", "against"), [(8, 0.814, 1.185), (16, 0.855, 1.145), (64, 0.932, 1.070)])
def test_without_the_signs_positive_features_are_biased(d: int, along: float, against: float) -> None:
    """The mean estimate of exp(1/2) over the rows of a block, z all ones and all minus ones, |z| = 1; and of the first
    row alone with z its axis, 2 Phi(-1): its coordinate there is never positive. Nothing is off with the signs."""
    draws = 12_000 if d < 64 else 3_000
    random = np.random.default_rng(d)
    raw, right = (_blocks(d, draws, random, raw=raw) for raw in (True, False))
    for rows, wanted in ((raw, (along, against)), (right, (1.0, 1.0))):
        for sign, mean in zip((1, -1), wanted, strict=True):
            _is_mean(np.exp(sign * rows.sum(axis=-1) / d**0.5 - 0.5).mean(axis=-1), mean, 0.0005)
    _is_mean(np.exp(raw[:, 0, 0] - 0.5), 2 * float(stats.norm.cdf(-1)), 0.0)


def _blocks(d: int, draws: int, random: np.random.Generator, *, raw: bool) -> Values:
    """[draws, d, d], each an orthogonal block of its own."""
    return _drawn(draws * d, d, True, "chi", random, raw=raw).reshape(draws, d, d)


def _is_mean(x: Values, mean: float, rounding: float) -> None:
    """Within five standard errors, and the rounding of the figure."""
    assert abs(x.mean() - mean) <= rounding + 5 * x.std() / len(x) ** 0.5
