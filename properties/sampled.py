"""Long sequences: a kernel is called once on the whole, and judged on some rows of what it returns.

A row of attention needs its own query and the keys that it sees, and no other query. The contract says what a row
depends on (`Operator.row`), and each row is judged as the output of that smaller case: the same definition, the same
derived bound, an oracle of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from assay.properties.contract import Operator
from assay.properties.drawing import Case, Values
from assay.properties.trial import Answer, Subject, Trial, Violation
from assay.reference.arithmetic.oracle import Arguments


@dataclass(frozen=True)
class _Row:
    """A kernel as it is seen through one row [.., 1, e] that it has returned."""

    kernel: Subject
    row: Values

    name = property(lambda self: self.kernel.name)
    form = property(lambda self: self.kernel.form)
    precision = property(lambda self: self.kernel.precision)
    differentiable = False

    def supports(self, keyword: str) -> bool:
        return self.kernel.supports(keyword)

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        return Answer((self.row,))


def agree_in_rows(operator: Operator, kernel: Subject, case: Case, rows: Sequence[int]) -> float:
    """The largest |error| / bound over some rows of the kernel's first output [.., t, e].

    Raises: Violation where a row is outside its bound; ValueError if the operator does not say what a row depends on.
    """
    if operator.row is None:
        raise ValueError(f"the contract of {operator.name} does not say what a row depends on")
    output = kernel(case.arguments, None, ()).outputs[0]
    headroom = 0.0
    for i in rows:
        small = replace(case, arguments=operator.row(case.arguments, i))
        trial = Trial(operator, _Row(kernel, output[..., i : i + 1, :]), small)
        try:
            trial.agree()
        except Violation as violation:
            raise Violation(f"row {i}: {violation}", violation.miss) from None
        headroom = max(headroom, trial.headroom)
    return headroom
