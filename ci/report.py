"""What a run found, for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.expected import BAD, Expectations
from assay.failures import Judged as Judged, failures, not_judged
from assay.journal import curve_as_json
from assay.properties.counterexample import jsonable


STYLES = {"pass": "green", "fail": "red", "error": "red", "undecided": "yellow", "skipped": "dim"}


def console() -> Console:
    """Where results are printed; a file or a pipe is wide enough for a table."""
    out = Console(highlight=False, emoji=False)
    return out if out.is_terminal else Console(highlight=False, emoji=False, width=160)


def print_table(console: Console, judged: Sequence[Judged], known: Expectations = Expectations()) -> None:
    """One row per kernel and dtype."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("kernel", "dtype", "verdict", "headroom"):
        table.add_column(column, overflow="fold", no_wrap=column != "kernel")
    table.add_column("follows", overflow="fold")
    table.add_column("fails", overflow="fold")
    for kernel, found in judged:
        failing = [r.property for r in found.results if r.verdict in BAD]
        more = f" +{len(failing) - 1}" if len(failing) > 1 else ""
        more += "" if known.unexpected(kernel, found) else ", known"
        table.add_row(
            Text(short(kernel.name)),
            Text(found.dtype),
            Text(found.verdict, style=STYLES[found.verdict]),
            Text(number(found.headroom) if found.verdict not in ("error", "skipped") else ""),
            Text(str(found.inferred) if found.inferred else ""),
            Text(failing[0] + more if failing else ""),
        )
    console.print(table)


def print_failures(console: Console, judged: Sequence[Judged], known: Expectations = Expectations()) -> None:
    """For each kernel that does not pass: what it looks like first, then the smallest case that shows it."""
    for name, dtype, reason in not_judged(judged):
        console.print(Text(f"\n{name} {dtype}: not judged: {reason}"), soft_wrap=True)
    for failure in failures(judged, known):
        console.print(Text(f"\n{failure.kernel} {failure.dtype}", style="bold"))
        for text in failure.diagnosis:
            console.print(Text(f"  diagnosis: {text}", style="bold yellow"), soft_wrap=True)
        console.print(Text(f"  {failure.property}: {failure.message}"), soft_wrap=True)
        if failure.case:
            console.print(Text(f"    in {failure.case}"), soft_wrap=True)
        if failure.also:
            console.print(Text(f"  also: {', '.join(failure.also)}"), soft_wrap=True)
        if failure.replay:
            console.print(Text(f"  replay: {failure.replay}"), soft_wrap=True)


def print_known(console: Console, judged: Sequence[Judged], known: Expectations) -> None:
    """Each failure that is expected, in one line; and what is wrong with the expectations."""
    lines, problems = known.lines(judged), known.problems(judged)
    console.print() if lines or problems else None
    for line in lines:
        console.print(Text(f"known: {line}", style="dim"), soft_wrap=True)
    for problem in problems:
        console.print(Text(problem, style="red"), soft_wrap=True)


def print_left_out(console: Console, left_out: Mapping[str, str]) -> None:
    """What was not looked at, in one line for each reason."""
    names = defaultdict(list)
    for name, reason in left_out.items():
        names[reason].append(name)
    for reason, left in names.items():
        console.print(Text(f"not judged, since {reason}: {', '.join(left)}", style="dim"), soft_wrap=True)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return "inf" if math.isinf(value) else f"{value:.3g}"


def seconds(value: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def short(name: str) -> str:
    """A kernel's name without the folders of its file."""
    return name.rpartition("/")[2]


def verdict(one: Judged, known: Expectations) -> str:
    """The verdict of a kernel, or that it fails as expected."""
    found = one[1].verdict
    return "known" if found != "pass" and known.accepts(*one) else found


def as_json(
    judged: Sequence[Judged], left_out: Mapping[str, str], known: Expectations = Expectations()
) -> dict[str, Any]:
    """Per kernel, dtype and property: verdict, headroom, cases, seconds, inference, diagnosis, counterexample file; and
    per kernel and dtype the error atlas."""
    kernels = []
    for kernel, found in judged:
        for result in found.results:
            entry = known.of(kernel, found.dtype, result)
            kernels.append(
                {
                    "operator": kernel.operator.name,
                    "kernel": kernel.name,
                    "versions": kernel.versions,
                    "dtype": found.dtype,
                    "property": result.property,
                    "verdict": result.verdict,
                    "headroom": _finite(result.headroom),
                    "cases": result.cases,
                    "seconds": round(result.seconds, 6),
                    "message": result.message,
                    "form": found.inferred.form if found.inferred else None,
                    "precision": found.inferred.precision if found.inferred else None,
                    "not_covered": list(found.not_covered),
                    "diagnosis": [asdict(f) for f in result.diagnosis],
                    "case": result.counterexample or None,
                    "values": dict(result.values),
                    "element": jsonable(asdict(result.miss)) if result.miss else None,
                    "counterexample": result.stored or None,
                    "known": {"reason": entry.reason, "expires": str(entry.expires)} if entry else None,
                }
            )
    atlas = [
        {"kernel": k.name, "operator": k.operator.name, "dtype": f.dtype, **curve_as_json(c)}
        for k, f in judged
        for c in f.atlas
    ]
    return {**versions(), "left_out": dict(left_out), "results": kernels, "atlas": atlas}


def versions() -> dict[str, str]:
    """What the results were had with."""
    return {
        "assay": metadata.version("assay"),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "machine": platform.machine(),
    }


def _finite(value: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "inf" if value is not None and not math.isfinite(value) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Raises: OSError."""
    write(path, json.dumps(content, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a run that is killed leaves the old file whole; into what is no file, a
    pipe for instance, directly. Raises: OSError."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
