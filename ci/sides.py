"""The two sides of a comparison: where a version of the kernels is, and how it is brought there.

A side is a git revision, a package version, a wheel or a source tree, each installed into an environment of its own
that falls back on this one for all it does not bring; or a function, which is where it is.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from assay.kernels import Known, UsageError, known_kernels, resolve


WAYS = (
    "a side is a git revision, main... (its merge base with HEAD), PACKAGE==VERSION, a wheel, "
    "the folder of a source tree, or OPERATOR=MODULE:FUNCTION"
)


@dataclass(frozen=True)
class Side:
    """One side, ready to be timed."""

    name: str
    paths: tuple[str, ...] = ()
    """What comes before everything else on sys.path."""
    python: str = sys.executable
    """The interpreter of its environment."""
    package: str = ""
    """What was installed there."""
    kernel: Known | None = None
    """The one function that the side consists of."""
    sources: bool = False
    """It was built from sources, a revision's or a tree's."""

    @property
    def native(self) -> bool:
        """It brings compiled modules, of which a process can load one version only."""
        suffixes = {".so", ".pyd", ".dylib"}
        return any(file.suffix in suffixes for path in self.paths for file in Path(path).rglob("*"))


def prepare(spelling: str, folder: Path) -> Side:
    """Build a side; what it needs is put into `folder`, which is empty.

    Raises: UsageError, in one line, where a spelling means nothing or its environment cannot be built.
    """
    path = Path(spelling)
    if "==" in spelling:
        return _installed(spelling, spelling, folder)
    if spelling.endswith(".whl"):
        if not path.is_file():
            raise UsageError(f"there is no wheel {spelling}")
        return _installed(spelling, str(path.resolve()), folder)
    if ":" in spelling:
        found = resolve(spelling)
        return Side(spelling, kernel=found[0])
    if path.is_dir():
        if not any((path / name).is_file() for name in ("pyproject.toml", "setup.py")):
            raise UsageError(f"the folder {spelling} holds no Python project")
        return replace(_installed(spelling, str(_copied(path, folder / "tree")), folder), sources=True)
    commit = _commit(spelling)
    tree = folder / "tree"
    archive = subprocess.run(["git", "archive", commit], capture_output=True, cwd=_top())
    if archive.returncode:
        raise UsageError(f"git cannot give the files of {spelling}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extraction_filter = getattr(tarfile, "data_filter", None)  # not in every Python 3.11
        files.extractall(tree)
    return replace(_installed(f"{spelling} ({commit[:10]})", str(tree), folder), sources=True)


def _copied(tree: Path, to: Path) -> Path:
    """The sources alone: what a build has left in a tree would get into the next one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=tree, capture_output=True
    )
    if listed.returncode:  # not under git
        shutil.copytree(tree, to, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*"))
        return to
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / name, to / name)
    return to


def git(*arguments: str) -> str:
    """What git answers, stripped. Raises: UsageError with its last line."""
    try:
        told = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("git is not installed") from None
    if told.returncode:
        lines = told.stderr.strip().splitlines() or [f"exit code {told.returncode}"]
        raise UsageError(f"git {arguments[0]}: {lines[-1]}")
    return told.stdout.strip()


def _top() -> str:
    return git("rev-parse", "--show-toplevel")


def _commit(spelling: str) -> str:
    revision, dots, _ = spelling.partition("...")
    try:
        found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except UsageError:
        raise UsageError(f"{spelling!r} is no git revision here; {WAYS}") from None
    return git("merge-base", found, "HEAD") if dots else found


def _installed(name: str, requirement: str, folder: Path) -> Side:
    """Install into a fresh environment that sees the packages of this one behind its own."""
    home = folder / "environment"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = str(home / ("Scripts" if os.name == "nt" else "bin") / "python")
    scheme = {"base": str(home), "platbase": str(home), "installed_base": str(home), "installed_platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    behind = [p for p in sys.path if p and Path(p).is_dir() and not p.startswith(sysconfig.get_path("stdlib"))]
    behind += [p for p in sys.path if p.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(behind)]
    (own / "behind.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The thing itself always comes from where it was asked for; of what it needs, only what is not here already.
    _pip(python, name, "install", "--ignore-installed", "--no-deps", requirement)
    added = list(metadata.distributions(path=[str(own)]))
    if not added:
        raise UsageError(f"{name} installs nothing")
    package, version = added[0].metadata["Name"], added[0].version
    _pip(python, name, "install", f"{package}=={version}")
    return Side(name, (str(own.resolve()),), python, package)


def _pip(python: str, name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *arguments]
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PYTHONWARNINGS")}
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    if told.returncode:
        lines = [line for line in told.stderr.strip().splitlines() if line.strip()] or [f"exit code {told.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UsageError(f"{name} cannot be installed: {errors[-1].strip()}")


def kernels_of(base: Side, head: Side, named: Sequence[str]) -> list[tuple[Known, Known]]:
    """The kernels to compare, as base and head know them.

    Named ones, or the function that a side consists of; otherwise those of assay that belong to what was installed.
    Raises: UsageError where nothing says which.
    """
    if base.kernel is not None and head.kernel is not None:
        if base.kernel.operator.name != head.kernel.operator.name:
            raise UsageError(f"{base.name} and {head.name} are kernels of two operators")
        return [(base.kernel, head.kernel)]
    one = base.kernel or head.kernel
    files = [s for s in ([one.spelling] if one is not None else named) if s.rpartition(":")[0].endswith(".py")]
    if files and (base.sources or head.sources):
        raise UsageError(f"{files[0]} is one file for both sides: name the kernel by the module that is installed")
    if one is not None:
        return [(one, one)]
    if named:
        with _first_on_path(head.paths):
            return [(k, k) for spelling in named for k in resolve(spelling)]
    packages = {_plain(base.package), _plain(head.package)}
    known, _ = known_kernels()
    if "assay" in packages:
        found = [k for k in known if k.place.startswith("assay.impl.") and ".adapters." not in k.place]
    else:
        found = [k for k in known if packages & {_plain(p) for p in k.claims.requires}]
    if not found:
        raise UsageError(f"no kernel known here belongs to {', '.join(sorted(packages))}: name one with --kernel")
    return [(k, k) for k in found]


@contextmanager
def _first_on_path(paths: Sequence[str]) -> Iterator[None]:
    sys.path[:0] = paths
    try:
        yield
    finally:
        del sys.path[: len(paths)]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
