"""What a person is told of each failure, in whatever medium: what it looks like, where, and how to see it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from assay.expected import Expectations
from assay.kernels import Known
from assay.properties.results import Examination
from assay.replay import command


Judged = tuple[Known, Examination]


@dataclass(frozen=True)
class Failure:
    """Why a kernel does not pass in a dtype: the first of its properties that fail, which says most."""

    kernel: str
    dtype: str
    diagnosis: Sequence[str]
    """The likeliest first."""
    property: str
    message: str
    case: str
    """The smallest input that shows it; empty if there is none."""
    also: Sequence[str]
    """The other properties that fail."""
    replay: str
    """What to type in order to see it again; empty if it is not stored."""


def failures(judged: Sequence[Judged], known: Expectations) -> Iterator[Failure]:
    """One for each kernel and dtype in which something fails that is not expected."""
    for kernel, found in judged:
        bad = known.unexpected(kernel, found)
        if not bad:
            continue
        first, *others = bad
        alike = [r for r in others if r.message == first.message]
        also = [r.property for r in others if r not in alike]
        also += [f"the same in {len(alike)} more"] if alike else []
        diagnosis = [f.text for f in first.diagnosis]
        told = first.property, first.message, first.counterexample, also, command(first)
        yield Failure(kernel.name, found.dtype, diagnosis, *told)


def not_judged(judged: Sequence[Judged]) -> Iterator[tuple[str, str, str]]:
    """Kernel, dtype and reason, where everything was skipped."""
    for kernel, found in judged:
        if found.verdict == "skipped":
            yield kernel.name, found.dtype, next((r.message for r in found.results if r.message), "")
