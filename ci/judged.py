"""The record of what was judged, from which the pages of the documentation are made: docs/judged.json.

It holds what `assay check --json` found of every known kernel, one entry for each kernel and dtype, and with which
versions. Nothing in it is written by hand: `python -m assay.docs --judged RESULTS` adds results to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.expected import BAD


FILE = "judged.json"


@dataclass(frozen=True)
class Record:
    """The verdict of a kernel in a dtype, and what it was had with."""

    operator: str
    kernel: str
    dtype: str
    verdict: str
    cases: int
    """Cases on which it was held against the exact answer."""
    headroom: float | str | None
    follows: str
    """The tightest published form and precision that it keeps."""
    fails: tuple[str, ...]
    not_covered: tuple[str, ...]
    versions: Mapping[str, str]


def short(kernel: str) -> str:
    """The name of a kernel of assay or of a package as `assay check` has it: `transformers:llama`."""
    return kernel.removeprefix("assay.impl.").removeprefix("adapters.")


def read(folder: Path) -> tuple[Record, ...]:
    """The record in a folder; nothing if there is none yet."""
    path = folder / FILE
    if not path.exists():
        return ()
    content = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Record(**{**one, "fails": tuple(one["fails"]), "not_covered": tuple(one["not_covered"])}) for one in content
    )


def add(folder: Path, results: Iterable[Path]) -> None:
    """Add what `assay check --json` wrote; of a kernel and dtype that are there already, the new result counts."""
    found = {(r.operator, r.kernel, r.dtype): r for r in read(folder)}
    for path in results:
        for record in _records(json.loads(path.read_text(encoding="utf-8"))):
            found[record.operator, record.kernel, record.dtype] = record
    lines = [json.dumps(asdict(found[key]), sort_keys=True) for key in sorted(found)]
    (folder / FILE).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _records(run: Mapping[str, Any]) -> Iterable[Record]:
    by_kernel: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in run["results"]:
        by_kernel.setdefault((one["operator"], short(one["kernel"]), one["dtype"]), []).append(one)
    for (operator, kernel, dtype), results in by_kernel.items():
        verdicts = {r["verdict"] for r in results}
        first = results[0]
        if verdicts == {"skipped"}:
            continue
        yield Record(
            operator=operator,
            kernel=kernel,
            dtype=dtype,
            verdict=next(v for v in ("error", "fail", "undecided", "pass") if v in verdicts),
            cases=max(r["cases"] for r in results),
            headroom=next((r["headroom"] for r in results if r["property"] == "agrees_with_oracle"), None),
            follows=", ".join(filter(None, (first["form"], first["precision"]))),
            fails=tuple(r["property"] for r in results if r["verdict"] in BAD),
            not_covered=tuple(first["not_covered"]),
            versions={"torch": run["torch"], **first["versions"]},
        )
