"""What was found in released packages: each finding is still there in the version that it is told of, and no failure of
the record is without one."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from assay import findings, judged
from assay.pages import claimed
from assay.process import Limits
from assay.properties.counterexample import Counterexample
from assay.replay import read, replay


DOCS = Path(__file__).parent.parent / "docs"
FOLDER = DOCS / findings.FOLDER
FOUND = findings.load(DOCS).findings
RECORD = judged.read(DOCS)
HANGS = "the call took longer"
LARGEST = 1 << 14
"""Bytes of a counterexample with its arrays: it is meant to be looked at."""


def missing(stored: Counterexample, package: str) -> str:
    """Why a finding cannot be seen here: a package that it needs is not installed, or that which it is about is another
    version. Nothing, if it can."""
    for name, version in stored.versions.items():
        if name in ("python", "assay", "numpy"):
            continue
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"{name} is not installed"
        if name == package and here.partition("+")[0] != version.partition("+")[0]:
            return f"{name} {here} is installed, and this was found in {version}"
    return ""


def param(finding: findings.Finding) -> object:
    """Ranks are processes, which take their time to start; a call that does not return takes all that it is given."""
    stored = read(FOLDER / finding.file)
    slow = stored.world > 1 or HANGS in stored.message
    return pytest.param(finding, id=finding.file.removesuffix(".json"), marks=pytest.mark.nightly if slow else ())


@pytest.mark.filterwarnings("default")  # a kernel that warns has not refused
@pytest.mark.parametrize("finding", [param(f) for f in FOUND])
def test_it_is_there_still(finding: findings.Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read(FOLDER / finding.file)
    reason = missing(stored, finding.package)
    if reason:
        pytest.skip(reason)
    cpuinfo = Path("/proc/cpuinfo")
    if finding.processor and not (cpuinfo.exists() and finding.processor in cpuinfo.read_text().split()):
        pytest.skip(f"this processor has no {finding.processor}")
    for name, value in finding.environment.items():
        monkeypatch.setenv(name, value)
    # In this process, where its packages are loaded once; ranks need processes of their own, and so do variables.
    apart = stored.world > 1 or finding.environment or HANGS in stored.message
    fails, told = replay(FOLDER / finding.file, limits=Limits() if apart else None)
    assert fails, "\n".join(told)


@pytest.mark.parametrize("finding", FOUND, ids=lambda f: f.file.removesuffix(".json"))
def test_it_is_about_what_it_says(finding: findings.Finding) -> None:
    stored = read(FOLDER / finding.file)
    assert finding.kind in findings.KINDS
    assert finding.package in stored.versions
    assert sum(p.stat().st_size for p in FOLDER.glob(f"{Path(finding.file).stem}.*")) <= LARGEST
    same = [
        r for r in RECORD if judged.short(stored.kernel.partition("=")[2]) == r.kernel and r.dtype == stored.case.dtype
    ]
    assert all(findings.explains(finding, r) and stored.property in r.fails for r in same)


def test_every_file_belongs_to_a_finding() -> None:
    named = [Path(f.file).stem for f in FOUND]
    assert len({*named}) == len(named)
    assert {p.stem for p in FOLDER.glob("*.*") if p.name != findings.TABLE} == {*named}


@pytest.mark.parametrize(
    "record", [r for r in RECORD if r.verdict in ("fail", "error")], ids=lambda r: f"{r.kernel}-{r.dtype}"
)
def test_every_failure_is_explained(record: judged.Record) -> None:
    told = {name for f in FOUND if findings.explains(f, record) for name in f.properties or record.fails}
    assert {*record.fails} <= told


def test_what_was_judged_is_known() -> None:
    assert {(r.operator, r.kernel) for r in RECORD} <= {(k.operator.name, k.name) for k in claimed()}
