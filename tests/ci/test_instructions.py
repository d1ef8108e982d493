"""Instructions: both sides are counted alike, more work counts as more, and what cannot be counted is one line."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from assay.compare import Job
from assay.instructions import NEEDED, count, countable
from assay.kernels import UsageError, resolve
from assay.power import jobs_of
from assay.timing import Inputs, Setup
from assay.verdict import COUNTED, estimate, of_counts


TIMED = Path(__file__).parent.parent / "timed_kernels.py"
TINY = Setup("rms_norm", "tiny", "float32", False, 1)
counting = pytest.mark.skipif(any(shutil.which(name) is None for name in NEEDED), reason="Valgrind is not installed")


def silent(_: str) -> None:
    pass


def job(inputs: Inputs, base: str, head: str) -> Job:
    told = []
    for name in (base, head):
        (kernel,) = resolve(f"rms_norm={TIMED}:{name}")
        told.append(inputs.of(kernel, TINY))
    return Job(f"{base}-{head}", TINY, *told)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.0, 1.0), "SAME"),
        ((1.00002, 1.00001), "SAME"),
        ((1.03, 1.03), "SLOW"),
        ((0.97, 0.97), "FAST"),
        ((1 + COUNTED, 1 + COUNTED), "UNSURE"),
        ((1.0, 1.03), "UNSURE"),
    ],
)
def test_counts_that_agree_decide_beyond_one_per_cent(ratios: tuple[float, ...], verdict: str) -> None:
    assert of_counts(estimate([math.log(r) for r in ratios])) == verdict


@pytest.mark.parametrize("setup", [replace(TINY, threads=2), replace(TINY, device="cuda")])
def test_only_one_thread_of_the_cpu_is_counted(setup: Setup) -> None:
    with pytest.raises(UsageError, match="instructions are counted on one thread of the CPU"):
        countable([Job("k", setup, {}, {})])


def test_without_valgrind_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="counted by Valgrind, which is not installed here"):
        countable([Job("k", TINY, {}, {})])


@counting
@pytest.mark.nightly
def test_more_work_is_more_instructions() -> None:
    with Inputs() as inputs:
        pairs = (("right", "right"), ("right", "tenfold"), ("tenfold", "right"), ("right", "raises"))
        found = {c.job.name: c for c in count([job(inputs, *names) for names in pairs], silent)}
    told = {name: c.verdict for name, c in found.items()}
    assert told == {"right-right": "SAME", "right-tenfold": "SLOW", "tenfold-right": "FAST", "right-raises": "FAILED"}
    assert "RuntimeError: the device is on fire" in found["right-raises"].reason
    ratio = found["right-tenfold"].estimate
    assert ratio is not None
    assert 5 < ratio.ratio <= 10.5, "ten times the work, and what a call costs by itself once"


@counting
@pytest.mark.nightly
@pytest.mark.parametrize("change", [0.0, 0.03])
def test_three_per_cent_are_seen(change: float) -> None:
    with Inputs() as inputs:
        planted = {job.name: job for found, job in jobs_of(inputs, random.Random(0)) if found == change}
        found = count(list(planted.values()), silent)
    for compared in found:
        assert compared.verdict == ("SLOW" if change else "SAME"), compared
