"""No right kernel of state spaces or of attention is rejected, by any demand: the honest one of every form, with sums
in two orders, and ours, on the same cases.

Each test says how many judgements it made: `-m nightly -rP`, an operator at a time by `-k`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from assay.kernels import known_kernels
from assay.properties import OPERATORS
from assay.properties.contract import Operator
from assay.properties.drawing import DTYPES
from assay.properties.judgement import examine, prepare
from assay.properties.matrix import dtypes
from assay.properties.mutants import right_kernels
from assay.properties.run import Effort
from assay.properties.trial import Subject, Trial


EXAMPLES = 28
STATE_SPACES = (
    "hippo_matrices",
    "hippo_project",
    "discretize",
    "ssm_scan",
    "ssm_kernel",
    "fft_convolve",
    "s4d_kernel",
    "s4_kernel",
    "selective_scan",
)
ATTENTION = (
    "softmax_attention",
    "unnormalized_attention",
    "linear_attention",
    "random_features",
    "performer_attention",
)
JUDGED = [
    (name, dtype, portion)
    for names, asked, portions in ((STATE_SPACES, tuple(DTYPES), 2), (ATTENTION, ("float32", "bfloat16"), 5))
    for name in names
    for dtype in dtypes(OPERATORS[name], asked)
    for portion in range(portions)
]


def kernels(operator: Operator, dtype: str) -> list[Subject]:
    """Those that must pass."""
    ours = [
        k.subject()
        for k in known_kernels()[0]
        if k.operator is operator
        and dtype in k.claims.dtypes
        and not k.claims.interpreted
        and ".adapters." not in k.place
    ]
    return [*right_kernels(operator, dtype), *ours]


EVERY = Effort(examples=EXAMPLES, climb=0, shrink_seconds=0, stop="each")
"""Agreement and gradients on every case, and the other demands in turn."""


def covers(operator: Operator, kernel: Subject, trial: Trial) -> bool:
    """Is it ever asked for the conventions of this case?"""
    asked = {n: trial.case.arguments.get(n, values[0]) for n, values in operator.conventions.items()}
    return all(value == operator.conventions[n][0] or kernel.supports(n) for n, value in asked.items())


def judged(operator: Operator, dtype: str, seed: int) -> Iterator[tuple[str, int, list[str]]]:
    """Of each kernel its name, how often it was held against the exact answer, forward and backward, or to a law, and
    what is wrong."""
    right = kernels(operator, dtype)
    trials = prepare(operator, right[0], dtype, Effort(examples=EXAMPLES, seed=seed, climb=0))
    claims: dict[str | None, list[Trial]] = {right[0].form: trials}
    for kernel in right:
        own = claims.setdefault(kernel.form, [t.under(kernel) for t in trials])
        asked = [t for t in own if covers(operator, kernel, t)]
        found = examine(operator, kernel, dtype, effort=EVERY, prepared=asked)
        wrong = [f"{kernel.name}: {r.property}: {r.message}" for r in found.results if r.verdict in ("fail", "error")]
        yield kernel.name, sum(r.cases for r in found.results), wrong


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # a kernel that warns is not wrong
@pytest.mark.parametrize(("name", "dtype", "portion"), JUDGED)
def test_no_right_kernel_is_rejected(name: str, dtype: str, portion: int) -> None:
    found = list(judged(OPERATORS[name], dtype, 1 + portion))
    count = sum(cases for _, cases, _ in found)
    print(f"{count} judgements of {name} in {dtype}")
    assert [told for _, _, wrong in found for told in wrong] == []
    assert count >= EXAMPLES * len(right_kernels(OPERATORS[name], dtype))


@pytest.mark.parametrize("names", [STATE_SPACES, ATTENTION], ids=["state spaces", "attention"])
def test_there_are_10000_judgements(names: tuple[str, ...]) -> None:
    counted = [len(right_kernels(OPERATORS[name], dtype)) for name, dtype, _ in JUDGED if name in names]
    assert sum(counted) * EXAMPLES >= 10_000
