"""The history of speed: a store that is only appended to, and where in it something changed.

What is stored is never a time but the log ratio of a kernel to the steady kernel (`ci/anchors.py`), timed side by side:
a slower night slows both. Only records of one kernel, case, machine and harness are compared with each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import numpy as np

from assay.kernels import UsageError
from assay.verdict import MARGIN


HEADER = {"store": "assay history", "format": 1}
SHORTEST = 3
"""Records between two changes, at least: one odd night is no change."""
FINEST = 1e-4
"""Scatter below this is not believed."""


@dataclass(frozen=True)
class Record:
    """What one kernel took at one commit."""

    operator: str
    kernel: str
    case: str
    dtype: str
    mode: str
    threads: int
    machine: str
    """The class of machines: what is measured on another is another history."""
    harness: int
    commit: str
    time: str
    """When it was measured, in ISO 8601."""
    answers: tuple[float, ...]
    """The log ratio to the steady kernel, from each process."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What records must share to be compared."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in ("commit", "time", "answers"))

    @property
    def level(self) -> float:
        return median(self.answers)


class StoreError(UsageError):
    """The store is not what this program has written: one line. It is left as it is."""


class Store:
    """One file of JSON lines, each sealed by a digest of itself and all before it.

    Beside it stands a small file with the last seal, so that lines missing at the end are noticed too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seal_path = path.with_name(path.name + ".seal")

    def read(self) -> list[Record]:
        """All records, in order; none, if there is no store yet. Raises: StoreError."""
        if not self.path.exists():
            if self.seal_path.exists():
                raise StoreError(f"{self.path} is gone, but {self.seal_path.name} is there: bring it back")
            return []
        return self._checked()[0]

    def append(self, records: Sequence[Record]) -> None:
        """Raises: StoreError, without writing, where what is there is not in order."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.read()
        with self._locked() as file:
            if not self.path.stat().st_size:
                self._write_seal(0, _seal("", json.dumps(HEADER)))
                file.write(json.dumps(HEADER) + "\n")
                file.flush()
            known, seal = self._checked()
            for record in records:
                line = json.dumps(asdict(record))
                seal = _seal(seal, line)
                file.write(json.dumps({"seal": seal, **asdict(record)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self._write_seal(len(known) + len(records), seal)

    @contextmanager
    def _locked(self) -> Iterator[TextIO]:
        """The file, opened to append; two runs at once take turns where the system can make them."""
        with self.path.open("a", encoding="utf-8") as file:
            try:
                import fcntl
            except ImportError:
                pass
            else:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _write_seal(self, records: int, seal: str) -> None:
        beside = self.seal_path.with_name(self.seal_path.name + ".part")
        beside.write_text(json.dumps({"records": records, "seal": seal}) + "\n", encoding="utf-8")
        os.replace(beside, self.seal_path)

    def _checked(self) -> tuple[list[Record], str]:
        """The records and the last seal. Raises: StoreError for anything that is not as it was written."""
        try:
            text = self.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise StoreError(f"{self.path} is no history of assay: it is not text") from None
        first, *lines = text.split("\n")
        if first != json.dumps(HEADER):
            raise StoreError(f"{self.path} is no history of assay, or of another version of it; it was left as it is")
        if not lines or lines.pop() != "":
            raise StoreError(f"{self.path} is cut off in its last line, {len(lines) + 1}; it was left as it is")
        seals = [_seal("", first)]
        records = []
        for number, line in enumerate(lines, 2):
            try:
                content = json.loads(line)
                seal = content.pop("seal")
                record = Record(**{**content, "answers": tuple(content["answers"])})
            except (ValueError, TypeError, KeyError, AttributeError):
                raise StoreError(f"{self.path}, line {number} is damaged; it was left as it is") from None
            if seal != _seal(seals[-1], json.dumps(asdict(record))):
                raise StoreError(f"{self.path}, line {number} or one before it was changed; it was left as it is")
            seals.append(seal)
            records.append(record)
        self._check_end(seals)
        return records, seals[-1]

    def _check_end(self, seals: Sequence[str]) -> None:
        try:
            told = json.loads(self.seal_path.read_text(encoding="utf-8"))
            count, seal = int(told["records"]), str(told["seal"])
        except (OSError, ValueError, TypeError, KeyError):
            raise StoreError(f"{self.seal_path}, which seals {self.path.name}, is missing or damaged") from None
        # A run that was killed between the two files has left more lines than are sealed, which is in order.
        if count >= len(seals) or seals[count] != seal:
            raise StoreError(f"{self.path} lacks lines at its end, or is not what {self.seal_path.name} seals")


def _seal(before: str, line: str) -> str:
    return hashlib.sha256(f"{before}\n{line}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Step:
    """A lasting change of speed: it is not there at the commit `before`, and is there at `after`."""

    before: Record
    after: Record
    ratio: float
    """1.05: five per cent slower than before."""

    @property
    def counts(self) -> bool:
        return abs(math.log(self.ratio)) > math.log1p(MARGIN)

    def __str__(self) -> str:
        word = "slower" if self.ratio > 1 else "faster"
        change = max(self.ratio, 1 / self.ratio) - 1
        return f"{change:.1%} {word} since {self.before.commit[:10]}..{self.after.commit[:10]}"


def series(records: Sequence[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """The records that may be compared, by what they share, each in the order of the store."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(record.key, []).append(record)
    return found


def steps(records: Sequence[Record]) -> list[Step]:
    """The lasting changes in one series: PELT on absolute deviations, with a strict penalty.

    Source: R. Killick, P. Fearnhead, I. Eckley, JASA 107 (2012) 1590, as in the package ruptures.
    """
    import ruptures

    n = len(records)
    if n < 2 * SHORTEST:
        return []
    levels = np.array([r.level for r in records])
    # Differences of neighbours do not see the steps themselves.
    scatter = 1.4826 * float(np.median(np.abs(np.diff(levels)))) / math.sqrt(2)
    search = ruptures.Pelt(model="l1", min_size=SHORTEST, jump=1).fit(levels[:, None] / max(scatter, FINEST))
    ends = search.predict(pen=8 * math.log(n))
    starts = [0, *ends[:-1]]
    heights = [float(np.median(levels[a:b])) for a, b in zip(starts, ends, strict=True)]
    return [
        Step(records[at - 1], records[at], math.exp(after - before))
        for at, before, after in zip(ends[:-1], heights[:-1], heights[1:], strict=True)
    ]
