"""No right kernel of state spaces or of attention is rejected: the honest one of every form, with sums in two orders,
and ours, on the same cases.

Each test says how many judgements it made: `-m nightly -rP`, an operator at a time by `-k`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from assay.kernels import known_kernels
from assay.properties import OPERATORS
from assay.properties.contract import Operator
from assay.properties.drawing import DTYPES
from assay.properties.judgement import prepare
from assay.properties.matrix import dtypes
from assay.properties.mutants import right_kernels
from assay.properties.run import Effort
from assay.properties.trial import NotCovered, Subject, Trial, Violation


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


def judged(operator: Operator, dtype: str, seed: int) -> Iterator[str]:
    """Forward and backward, each kernel on each case: what is wrong, or nothing."""
    right = kernels(operator, dtype)
    trials = prepare(operator, right[0], dtype, Effort(examples=EXAMPLES, seed=seed, climb=0))
    claims: dict[str | None, list[Trial]] = {right[0].form: trials}
    for kernel in right:
        for trial in claims.setdefault(kernel.form, [t.under(kernel) for t in trials]):
            asked = {n: trial.case.arguments.get(n, values[0]) for n, values in operator.conventions.items()}
            if any(value != operator.conventions[n][0] and not kernel.supports(n) for n, value in asked.items()):
                continue  # of this convention it is never asked
            mine = trial.under(kernel)
            try:
                mine.agree()
                if mine.differentiated:
                    mine.agree_in_gradients()
            except NotCovered:
                continue
            except Violation as violation:
                yield f"{kernel.name}: {violation} ({mine.case.shapes()})"
            else:
                yield ""


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "dtype", "portion"), JUDGED)
def test_no_right_kernel_is_rejected(name: str, dtype: str, portion: int) -> None:
    found = list(judged(OPERATORS[name], dtype, 1 + portion))
    print(f"{len(found)} judgements of {name} in {dtype}")
    assert [told for told in found if told] == []
    assert len(found) >= EXAMPLES * len(right_kernels(OPERATORS[name], dtype))


@pytest.mark.parametrize("names", [STATE_SPACES, ATTENTION], ids=["state spaces", "attention"])
def test_there_are_10000_judgements(names: tuple[str, ...]) -> None:
    counted = [len(right_kernels(OPERATORS[name], dtype)) for name, dtype, _ in JUDGED if name in names]
    assert sum(counted) * EXAMPLES >= 10_000
