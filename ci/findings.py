"""What `assay check` found in released packages: docs/findings.md, made from docs/findings/.

That folder holds one counterexample for each finding, as `assay check` stores them, and findings.toml, which says what
each is about: the package, the functions and kernels that share the cause, why, and whether upstream knows. What was
judged and found clean comes from the record of verdicts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.judged import Record
from assay.kernels import Known, keywords
from assay.markdown import block, code, escaped, table
from assay.pages import GENERATED, claimed
from assay.replay import read


if TYPE_CHECKING:
    from assay.properties.counterexample import Counterexample

FOLDER = "findings"
TABLE = "findings.toml"


@dataclass(frozen=True)
class Finding:
    """One cause, however many functions share it."""

    title: str
    package: str
    """The distribution, as pip names it; its version is that of the counterexample."""
    functions: str
    why: str
    upstream: str
    file: str
    """The counterexample."""
    kernels: tuple[str, ...]
    """The kernels that fail for this cause, as `assay check` names them; * and ? as in file names."""
    properties: tuple[str, ...] = ()
    """The demands that they break by it; any, if none is named."""
    dtypes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set, so that it shows on every processor."""
    processor: str = ""
    """What a processor must have, by the name of Linux for it, if others do not show it."""
    kind: str = "defect"
    """`defect`: it is wrong by what it says of itself. `weakness`: less exact or less careful than it could be.
    `documented`: it says so, or means another function: no defect, though assay's demand is not met."""


KINDS: Mapping[str, str] = {
    "defect": "Defects",
    "weakness": "Weaknesses",
    "documented": "Documented, or meant otherwise",
}
ABOUT: Mapping[str, str] = {
    "defect": "Wrong by what the package says of the function, or by what the function is.",
    "weakness": "Right for most callers; less exact or less careful than a kernel of its kind can be.",
    "documented": "assay demands more here than the package promises. No defect, and no reproach.",
}


@dataclass(frozen=True)
class Table:
    findings: tuple[Finding, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Packages that were looked at and not judged, each with the reason."""


def load(folder: Path) -> Table:
    content = tomllib.loads((folder / FOLDER / TABLE).read_text(encoding="utf-8"))
    return Table(tuple(map(_finding, content.get("finding", ()))), content.get("left_out", {}))


def _finding(entry: Mapping[str, Any]) -> Finding:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return Finding(**given)


def explains(finding: Finding, record: Record) -> bool:
    """Is this a failure of which the finding tells the cause?"""
    return (
        any(fnmatchcase(record.kernel, pattern) for pattern in finding.kernels)
        and (not finding.dtypes or record.dtype in finding.dtypes)
        and (not finding.properties or bool({*finding.properties} & {*record.fails}))
    )


def page(folder: Path, record: Sequence[Record]) -> str:
    found = load(folder)
    stored = {f.file: read(folder / FOLDER / f.file) for f in found.findings}
    parts = [
        "# Findings\n",
        GENERATED.replace("the contract and from judged.json", "findings/ and judged.json"),
        "What `assay check` found in released packages, each in the smallest input that shows it. `assay replay`,\n"
        "in the folder of this page, runs the kernel on it again; a test does so wherever that version is installed.\n"
        "What a package documents is not called a defect. Kernels were judged on the CPU, those in Triton in the\n"
        "interpreter.\n",
    ]
    for kind, title in KINDS.items():
        rows = [_row(f, stored[f.file]) for f in found.findings if f.kind == kind]
        if rows:
            parts += [f"## {title}\n", f"{ABOUT[kind]}\n", table(("package", "function", "what"), rows)]
    parts += ["## Each of them\n", *(_section(f, stored[f.file]) for f in found.findings)]
    parts += _judged(found, record)
    return "\n".join(parts)


def _row(finding: Finding, stored: Counterexample) -> tuple[str, str, str]:
    link = f"[{escaped(finding.title)}](#{slug(_title(finding, stored))})"
    return _of(finding, stored), escaped(finding.functions), link


def _of(finding: Finding, stored: Counterexample) -> str:
    return f"{finding.package} {stored.versions.get(finding.package, '')}".strip()


def _title(finding: Finding, stored: Counterexample) -> str:
    return f"{_of(finding, stored)}: {finding.title}"


def slug(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(finding: Finding, stored: Counterexample) -> str:
    variables = "".join(f"{name}={value} " for name, value in finding.environment.items())
    return "\n".join(
        [
            f"### {escaped(_title(finding, stored))}\n",
            f"{escaped(finding.functions)}; here {', '.join(map(code, finding.kernels))}.\n",
            block("text", f"{stored.property}: {stored.message}", f"in {stored.case.shapes()}"),
            f"{escaped(finding.why)}\n",
            f"Upstream: {finding.upstream}\n",
            f"    {variables}assay replay {FOLDER}/{finding.file}\n",
        ]
    )


def _judged(found: Table, record: Sequence[Record]) -> list[str]:
    """What every kernel of a package was tried on, and what came of it."""
    rows = [row for kernel in claimed() if (row := _tried(kernel, record))]
    left = [(escaped(name), escaped(reason)) for name, reason in found.left_out.items()]
    return [
        "## What was judged\n",
        "With `assay check`, mostly `--quick`: verdicts by dtype, in brackets on how many cases the kernel was held\n"
        "against the exact answer; the keywords that were varied, of those that the operator has; the demands that\n"
        "fail. Inputs are of ten kinds of numbers, in any strides, offsets and sizes; positions up to 2\\^31.\n",
        table(("package", "kernel", "operator", "verdicts", "varied", "fails"), rows),
        *(["## Not judged\n", table(("package", "why"), left)] if left else []),
    ]


def _tried(kernel: Known, record: Sequence[Record]) -> tuple[str, ...] | None:
    own = [r for r in record if r.kernel == kernel.name and r.operator == kernel.operator.name]
    if not own or not kernel.place.startswith("assay.impl.adapters."):
        return None
    asked = sorted(n for n in keywords(kernel.operator) if kernel.signature.supports(n))
    return (
        ", ".join(f"{p} {own[0].versions.get(p, '')}".strip() for p in kernel.claims.requires or ("torch",)),
        code(kernel.name),
        f"[{kernel.operator.name}](operators/{kernel.operator.name}.md)",
        ", ".join(f"{r.dtype} {r.verdict} ({r.cases})" for r in own),
        ", ".join(code(n) for n in asked if n not in own[0].not_covered),
        ", ".join(dict.fromkeys(code(n) for r in own for n in r.fails)),
    )
