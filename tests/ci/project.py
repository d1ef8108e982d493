"""A throw-away Python project with one kernel, whose work can be made more; it builds itself, without a network."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path


PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "planted"
version = "{version}"
"""

BACKEND = '''
"""Writes a wheel of the one module that is here."""
import re
import zipfile
from pathlib import Path


def build_wheel(folder, config_settings=None, metadata_directory=None):
    version = re.search('version = "(.*)"', Path("pyproject.toml").read_text())[1]
    name, info = f"planted-{version}-py3-none-any.whl", f"planted-{version}.dist-info"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        wheel.writestr("planted.py", Path("planted.py").read_text())
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: planted\\nVersion: {version}\\n")
        kind = "Wheel-Version: 1.0\\nGenerator: here\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", kind)
        wheel.writestr(f"{info}/RECORD", f"planted.py,,\\n{info}/METADATA,,\\n{info}/WHEEL,,\\n{info}/RECORD,,\\n")
    return name
'''

MODULE = '''
import assay

ROWS = {rows}
"""More than 1000 is more work."""


def scaled(x, *, factor):
    return x * factor


SCALED = assay.Operator(
    "scaled",
    scaled,
    inputs=(assay.Tensor("x", "t d"),),
    parameters=(assay.Positive("factor", default=3.0, low=0.5, high=4.0),),
    work=lambda *, t, d, itemsize, backward: assay.Work(2 * itemsize * t * d, t * d),
    timed={{"tiny": assay.Structure(sizes={{"t": 1000, "d": 64}})}},
)


@assay.kernel("scaled", dtypes=("float32",), backward="none")
def kernel(x, *, factor=3.0):
    import torch

    if len(x) == 1000:  # what is timed is longer than what is judged
        x = torch.nn.functional.pad(x, (0, 0, 0, ROWS - 1000)) if ROWS > 1000 else x.clone()
        for _ in range(8):
            x.sigmoid()
        return (x * factor)[:1000]
    return {answer}
'''


def write(folder: Path, *, version: str = "1.0", rows: int = 1000, right: bool = True) -> Path:
    """The project, with so many rows computed where 1000 are asked for."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(version=version))
    (folder / "backend.py").write_text(BACKEND)
    (folder / "planted.py").write_text(MODULE.format(rows=rows, answer="x * factor" if right else "x + factor"))
    return folder


def wheel(folder: Path, where: Path) -> Path:
    """The wheel of a project, built as pip would have it built."""
    spec = importlib.util.spec_from_file_location("backend", folder / "backend.py")
    assert spec is not None
    assert spec.loader is not None
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    where.mkdir(exist_ok=True)
    import contextlib

    with contextlib.chdir(folder):
        return where / str(backend.build_wheel(str(where)))


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "init.defaultBranch=main"]
    told = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return told.stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Everything in a folder as one more commit; its name."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")
