"""Counterexamples as files, and `assay replay`: one JSON file, and beside it one NumPy archive of the arrays.

A file is written beside its place and renamed, so that a reader never meets half of one; what is not a counterexample
is never overwritten. The kernel is named from the folder of the file, so that a project replays wherever it is moved.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import secrets
import shlex
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.archive import packed, unpacked
from assay.kernels import Known, UsageError, resolve
from assay.properties.contract import Operator


if TYPE_CHECKING:
    import numpy as np

    from assay.process import Limits
    from assay.properties.counterexample import Counterexample
    from assay.properties.drawing import Values
    from assay.properties.results import Examination, Result

FOLDER = Path(".assay", "counterexamples")
"""Where counterexamples are stored, seen from the working directory."""


# Writing -------------------------------------------------------------------------------------------------------------


def store_all(kernel: Known, examination: Examination, folder: Path, device: str = "cpu") -> str:
    """Store the counterexample of every result that has one. Returns why one could not be stored, or nothing."""
    reason = ""
    for result in examination.results:
        if result.case is None:
            continue
        try:
            result.stored = str(store(_counterexample(kernel, result, folder, device), folder))
        except (OSError, TypeError, ValueError) as error:
            reason = f"the counterexample could not be stored: {error}"
    return reason


def command(result: Result) -> str:
    """What to type in order to run a stored counterexample again."""
    return f"assay replay {shlex.quote(result.stored)}" if result.stored else ""


def store(counterexample: Counterexample, folder: Path) -> Path:
    """Write a counterexample into a folder. The same failure has the same file names, whoever finds it.

    Raises: OSError where it cannot be written, or another file stands in its place.
    """
    from assay.properties.counterexample import described

    content, arrays = described(counterexample)
    function = counterexample.kernel.rpartition(":")[2] or "kernel"
    parts = (counterexample.operator, function, counterexample.property, counterexample.case.dtype)
    stem = "-".join([*(re.sub(r"\W", "_", part)[:48] for part in parts), content["digest"]])
    folder.mkdir(parents=True, exist_ok=True)
    path, beside = folder / f"{stem}.json", folder / f"{stem}.npz"
    if path.exists() and not _ours(path):
        raise FileExistsError(f"{path} is not a counterexample of assay")
    if beside.exists() and not path.exists() and not _holds(beside, arrays):
        raise FileExistsError(f"{beside} is not a counterexample of assay")
    _replace(beside, packed(arrays))
    _replace(path, (json.dumps({**content, "arrays": beside.name}, indent=1) + "\n").encode())
    return path


def _counterexample(kernel: Known, result: Result, folder: Path, device: str) -> Counterexample:
    from assay.properties.counterexample import Counterexample

    assert result.case is not None
    name, seen_from = spelled(kernel, folder)
    return Counterexample(
        operator=kernel.operator.name,
        kernel=name,
        folder=seen_from,
        property=result.property,
        case=result.case,
        form=kernel.claims.form,
        precision=kernel.claims.precision,
        conventions=kernel.claims.conventions,
        world=kernel.claims.world,
        ranks=kernel.claims.ranks,
        device=device,
        verdict=result.verdict,
        message=result.message,
        miss=result.miss,
        diagnosis=tuple(result.diagnosis),
        versions=versions(kernel),
    )


def versions(kernel: Known) -> dict[str, str]:
    """What a failure may depend on."""
    names = ("assay", "numpy", "torch")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}, **kernel.versions}


def spelled(kernel: Known, folder: Path) -> tuple[str, str | None]:
    """OPERATOR=MODULE:FUNCTION without any folder, and where MODULE is, seen from the counterexample's folder."""
    module, _, function = kernel.place.rpartition(":")
    if not module:
        return "", None
    home: Path | None
    if module.endswith(".py") or os.sep in module:
        home, module = Path(module).resolve().parent, Path(module).name
    else:
        home = _home(module, kernel.files[0] if kernel.files else getattr(sys.modules.get(module), "__file__", None))
    name = f"{kernel.operator.name}={module}:{function}"
    if home is None:
        return name, None
    try:
        return name, Path(os.path.relpath(home, folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return name, str(home)


def _home(module: str, file: str | None) -> Path | None:
    """The folder from which a module was imported, unless it is installed."""
    import sysconfig

    if not file:
        return None
    parts = module.split(".")
    for tail in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
        home = Path(file).resolve().parents[len(tail.parts) - 1]
        if home / tail == Path(file).resolve():
            installed = {Path(sysconfig.get_path(n)).resolve() for n in ("purelib", "platlib", "stdlib")}
            return None if home in installed else home
    return None


def _ours(path: Path) -> bool:
    from assay.properties.counterexample import FORMAT

    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _holds(path: Path, arrays: dict[str, Values]) -> bool:
    """Are these very arrays there, as a run leaves them that was stopped before it wrote the JSON file?"""
    try:
        found = _arrays(path)
    except UsageError:
        return False
    same: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], bool] = lambda a, b: (  # noqa: E731
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    )
    return set(found) == set(arrays) and all(same(found[name], arrays[name]) for name in arrays)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(beside, "xb") as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


# Reading -------------------------------------------------------------------------------------------------------------


LARGEST = {".json": 1 << 24, ".npz": 1 << 30}
"""Bytes that are read of a file; the arrays of a counterexample are small."""
MOST_RANKS = 64


def read(path: Path) -> Counterexample:
    """The counterexample in a file. Raises: UsageError, in one line, for anything else."""
    from assay.properties.counterexample import Unreadable, restored

    text = _bytes(path, LARGEST[".json"])
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON, or not all of it") from None
    try:
        return restored(content, _arrays(_beside(path, content)))
    except Unreadable as error:
        raise UsageError(f"{path}: {error}") from None


def _bytes(path: Path, most: int) -> bytes:
    """What an ordinary file holds: a pipe or a device would never end."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} cannot be read: it is not a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size) if size <= most else b""
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'no file has that name'}"
        ) from None
    if size > most:
        raise UsageError(f"{path} cannot be read: it is larger than {most:,} bytes")
    return content


def _beside(path: Path, content: Any) -> Path | None:
    """The archive of the arrays: a file in the same folder."""
    name = content.get("arrays") if isinstance(content, dict) else None
    if name is None:
        return None
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise UsageError(f"{path}: 'arrays' must name a file in the same folder")
    return path.with_name(name)


def _arrays(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    content = _bytes(path, LARGEST[".npz"])
    try:
        return unpacked(content)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


# Running again -------------------------------------------------------------------------------------------------------


def replay(
    path: Path, kernel: str | None = None, device: str | None = None, limits: Limits | None = None
) -> tuple[bool, list[str]]:
    """Run a stored counterexample again: does it still fail, and what is there to say?

    `kernel` names another one to run on the same case, under the same claims. With limits it runs in a process of its
    own. Raises: UsageError where the question cannot be asked.
    """
    from assay.lines import one_line
    from assay.properties.robustness import checks
    from assay.properties.statistics import Samples
    from assay.properties.trial import KernelError, NotCovered, Trial, Violation

    stored = read(path)
    known = _resolved(stored, path, kernel, limits)
    claims = dataclasses.replace(
        known.claims,
        form=stored.form,
        precision=stored.precision,
        conventions=dict(stored.conventions),
        world=stored.world,
        ranks="mean" if stored.ranks == "mean" else "sum",
    )
    known = dataclasses.replace(known, claims=claims)
    operator = known.operator
    check = next((c for c in checks(operator) if c.name == stored.property), None)
    if check is None:
        raise UsageError(f"{operator.name} has no property {stored.property!r}")
    _fits(operator, stored)
    device = device or stored.device
    _has(device)
    subject = known.subject(device, limits)
    trial = (Samples if operator.random else Trial)(operator, subject, stored.case)
    try:
        _ = trial.exact
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"the definition of {operator.name} cannot be evaluated on this case: {reason}") from None
    told = [f"{kernel or stored.kernel} {stored.case.dtype}: {check.name}", f"  in {stored.case.shapes()}"]
    then = stored.versions
    told += [f"  {n} was {then[n]}, is {v}" for n, v in versions(known).items() if then.get(n, v) != v]
    try:
        if not check.holds(trial):
            raise UsageError(f"the case is outside the domain of {check.name}, as it is now")
    except NotCovered as refusal:
        raise UsageError(f"the kernel does not support this case: {refusal}") from None
    except (Violation, KernelError) as found:
        return True, [*told, f"  still fails: {found}"]
    return False, [*told, "  passes now"]


def _resolved(stored: Counterexample, path: Path, kernel: str | None, limits: Limits | None) -> Known:
    if kernel is None and not stored.kernel:
        raise UsageError(
            f"the kernel of {path} has no name by which it can be imported: add --kernel OPERATOR=MODULE:FUNCTION"
        )
    found = resolve(kernel or _from_here(stored, path), limits)
    if len(found) != 1:
        raise UsageError(f"{kernel} means {len(found)} kernels: name one")
    if found[0].operator.name != stored.operator:
        raise UsageError(f"{path} is about {stored.operator}, not {found[0].operator.name}")
    return found[0]


def _from_here(stored: Counterexample, path: Path) -> str:
    """The kernel's spelling, seen from the working directory."""
    operator, _, place = stored.kernel.partition("=")
    module, _, function = place.rpartition(":")
    if stored.folder is None:
        return stored.kernel
    home = Path(os.path.relpath((path.resolve().parent / stored.folder).resolve()))
    if module.endswith(".py"):
        return f"{operator}={home / module}:{function}"
    sys.path.insert(0, str(home.resolve()))
    return stored.kernel


def _fits(operator: Operator, stored: Counterexample) -> None:
    """The operator may have changed since, or be another one of the same name."""
    from assay.properties.counterexample import Unreadable
    from assay.properties.examples import belongs
    from assay.reference.arithmetic.precision import PRECISIONS

    try:
        belongs(operator, stored.case)
    except Unreadable as error:
        raise UsageError(str(error)) from None
    if stored.form is not None and stored.form not in operator.texts:
        raise UsageError(f"{operator.name} has no form {stored.form!r}; it has {', '.join(operator.texts)}")
    if not (1 <= stored.world <= MOST_RANKS and stored.ranks in ("sum", "mean")):
        raise UsageError(f"a kernel cannot be called over {stored.world} ranks with their {stored.ranks}")
    if stored.precision is not None and stored.precision not in PRECISIONS:
        raise UsageError(f"there is no precision {stored.precision!r}; there are {', '.join(PRECISIONS)}")


def _has(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:
        raise UsageError(f"there is no device {device!r} here: {str(error).partition(chr(10))[0]}") from None
