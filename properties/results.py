"""What is known of a kernel after a run: its verdict on each property, and how far it was off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from assay.properties.atlas import Curve
from assay.properties.diagnosis import Finding, Inferred
from assay.properties.drawing import Case
from assay.properties.robustness import AGREEMENT
from assay.properties.trial import Miss


Verdict = Literal["pass", "fail", "error", "undecided", "skipped"]


MEANT = "parameters_are_meant"
"""The property of every operator with parameters: no shift of one that counts, even within all bounds."""
SIZED = "gradients_have_their_size"
"""The property of every operator with gradients: none is off by a factor, even within all bounds."""


@dataclass
class Result:
    """The verdict of one kernel on one property in one dtype."""

    property: str
    verdict: Verdict
    cases: int = 0
    headroom: float | None = None
    """max |error| / bound over the cases; None for properties without a bound of their own."""
    seconds: float = 0.0
    message: str = ""
    """Why it failed, erred or was not judged, in one line."""
    case: Case | None = None
    """The shrunk case in which it failed."""
    counterexample: str = ""
    """The same in one line."""
    values: Mapping[str, str] = field(default_factory=dict)
    """The arrays of that case that are small, by name, each in one line."""
    miss: Miss | None = None
    """The worst element of that case, if it returned something to compare."""
    diagnosis: list[Finding] = field(default_factory=list)
    stored: str = ""
    """The file in which the counterexample is stored, once it is."""


@dataclass
class Examination:
    """Everything that is known of one kernel in one dtype after a run."""

    kernel: str
    dtype: str
    results: list[Result]
    inferred: Inferred | None = None
    not_covered: tuple[str, ...] = ()
    """Keywords and convention values that the kernel does not have."""
    atlas: tuple[Curve, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of its results."""
        found = {r.verdict for r in self.results}
        for verdict in ("error", "fail", "undecided", "pass"):
            if verdict in found:
                return verdict
        return "skipped"

    @property
    def headroom(self) -> float | None:
        return next((r.headroom for r in self.results if r.property == AGREEMENT.name), None)


Progress = Callable[[int, float, str], None]
"""Called again and again, with the number of cases so far, the headroom so far, and what is being tried."""
