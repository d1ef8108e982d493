"""Failures that someone expects: told apart from others, and given up as soon as they are not met.

`assay.conformance` has them as `xfail`, `assay check` in a file of TOML:

    [[known]]
    kernel = "torch:sdpa_*"
    property = ["agrees_with_oracle", "gradients_agree"]
    dtype = "bfloat16"
    signature = "passes as naive"
    reason = "probabilities are rounded before the product; reported upstream"
    expires = 2027-01-31

`kernel` is a name that `assay check` prints, or a pattern as of fnmatch. A list of properties or dtypes stands for as
many entries. `signature` must be contained in what is told of the failure, its message or its diagnosis. `expires` is
the last day on which the entry holds.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.lines import shortened
from assay.loading import UsageError


if TYPE_CHECKING:
    from assay.kernels import Known
    from assay.properties.results import Examination, Result


BAD = ("fail", "error", "undecided")
"""The verdicts that can be expected. What was skipped did not fail."""


def told(result: Result) -> str:
    """What is told of a failure: its message, and its diagnosis."""
    return "\n".join([result.message, *(f"diagnosis: {f.text}" for f in result.diagnosis)])


@dataclass(frozen=True)
class Expected:
    """A failure that someone expects."""

    property: str
    dtype: str
    signature: str
    """What is told of it must contain this."""
    reason: str

    def about(self, dtype: str, result: Result) -> bool:
        """Is it about this property in this dtype, whatever the verdict?"""
        return (self.property, self.dtype) == (result.property, dtype)

    def meets(self, dtype: str, result: Result) -> bool:
        """Is this the failure?"""
        return self.about(dtype, result) and result.verdict in BAD and self.signature in told(result)


@dataclass(frozen=True)
class Entry(Expected):
    """The same of a kernel that is named, until a date."""

    kernel: str
    expires: datetime.date
    place: str
    """Where it stands."""

    def names(self, kernel: str) -> bool:
        """Is it about this kernel? The table has the name without the folder of a file."""
        return any(fnmatchcase(name, self.kernel) for name in (kernel, kernel.rpartition("/")[2]))

    def __str__(self) -> str:
        return f"{self.place} ({self.kernel}, {self.property}, {self.dtype})"


LONGEST = 1000
"""Characters of a line: an entry is of any length."""
KEYS = ("kernel", "property", "dtype", "signature", "reason", "expires")
SEVERAL = ("property", "dtype")


@dataclass(frozen=True)
class Expectations:
    """The entries of a file, on a day."""

    entries: Sequence[Entry] = ()
    today: datetime.date = datetime.date.min

    def of(self, kernel: Known, dtype: str, result: Result) -> Entry | None:
        """The entry that expects a failure, if there is one that still holds."""
        holding = (e for e in self.entries if self.today <= e.expires)
        return next((e for e in holding if e.names(kernel.name) and e.meets(dtype, result)), None)

    def unexpected(self, kernel: Known, found: Examination) -> list[Result]:
        """The failures of a kernel that no entry expects."""
        return [r for r in found.results if r.verdict in BAD and self.of(kernel, found.dtype, r) is None]

    def lines(self, judged: Sequence[tuple[Known, Examination]]) -> list[str]:
        """A line for each of the others."""
        found = [(k, f.dtype, r, self.of(k, f.dtype, r)) for k, f in judged for r in f.results]
        told = [f"{k.name} {d} {r.property}: {e.reason} (until {e.expires})" for k, d, r, e in found if e is not None]
        return [shortened(line, LONGEST) for line in told]

    def accepts(self, kernel: Known, found: Examination) -> bool:
        """Does the kernel pass, or fail as expected and not otherwise?"""
        return found.verdict == "pass" or (found.verdict in BAD and not self.unexpected(kernel, found))

    def problems(self, judged: Sequence[tuple[Known, Examination]]) -> list[str]:
        """A line for each entry that has expired, or that no failure of what was judged meets.

        An entry about kernels and dtypes that were not judged says nothing: whoever judges a part uses the same file.
        """
        out = []
        for entry in self.entries:
            if self.today > entry.expires:
                out.append(f"{entry} has expired on {entry.expires}: repair the kernel, or look at it again")
                continue
            about = [(k, f) for k, f in judged if entry.names(k.name) and entry.dtype == f.dtype]
            if about and not any(entry.meets(f.dtype, r) for _, f in about for r in f.results):
                out.append(f"{entry} is met by no failure: remove it, or give it the signature of today")
        return [shortened(line, LONGEST) for line in out]


def read(path: Path, today: datetime.date | None = None) -> Expectations:
    """The entries of a file. Raises: UsageError, in one line that names the line or the entry and the key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    for key in content:
        if key != "known":
            raise UsageError(f"{path} has the key {key!r}, which means nothing: entries begin with [[known]]")
    tables = content.get("known", [])
    if not isinstance(tables, list):
        raise UsageError(f"{path}: 'known' is not a list: entries begin with [[known]]")
    entries = [e for number, table in enumerate(tables, 1) for e in _entries(f"{path}, entry {number}", table)]
    return Expectations(entries, today or datetime.date.today())


def _entries(place: str, table: Mapping[str, Any]) -> list[Entry]:
    from assay.properties.drawing import DTYPES

    if not isinstance(table, dict):
        raise UsageError(f"{place} is not a table: entries begin with [[known]]")
    for key in table:
        if key not in KEYS:
            raise UsageError(f"{place} has the key {key!r}, which means nothing; there are {', '.join(KEYS)}")
    for key in KEYS:
        if key not in table:
            raise UsageError(f"{place} has no {key}")
    expires = table["expires"]
    if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
        raise UsageError(f"{place}: expires must be a date, written without quotes: 2027-01-31")
    for key in KEYS:
        several = table[key] if key in SEVERAL and isinstance(table[key], list) else [table[key]]
        if key != "expires" and not (several and all(isinstance(v, str) and v.strip() for v in several)):
            raise UsageError(f"{place}: {key} must be a text that is not empty{', or a list' * (key in SEVERAL)}")
    properties, dtypes = ([table[k]] if isinstance(table[k], str) else table[k] for k in SEVERAL)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"{place}: there is no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    rest = {key: table[key] for key in KEYS if key not in SEVERAL}
    return [Entry(property=p, dtype=d, place=place, **rest) for p, d in product(properties, dtypes)]
