"""The journal of a run: each verdict is on the disk before the next is awaited, so that a killed run can be resumed.

One JSON object per line. The first says what was asked; each further one is the verdict on one kernel in one dtype. A
line ends with a digest of itself. Only the last line can be torn by whatever ended the run; it is dropped. Everything
else that cannot be read, and a journal of another question, is refused, and the file is left as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from assay.jobs import How, Work
from assay.kernels import Known, UsageError
from assay.properties.atlas import LEAST, WHAT, Class, Curve
from assay.properties.counterexample import Unreadable, finding, get, jsonable, missed, texts
from assay.properties.diagnosis import Inferred
from assay.properties.results import Examination, Result


FILE = Path(".assay", "journal.jsonl")
"""Where verdicts are written, seen from the working directory."""
FORMAT = "assay journal"
VERSION = 1
VERDICTS = ("pass", "fail", "error", "undecided", "skipped")


class Journal:
    """An open journal; without a file, one that cannot be kept."""

    def __init__(self, path: Path, file: BinaryIO | None) -> None:
        self.path = path
        self._file = file

    def append(self, number: int, kernel: Known, examination: Examination) -> str:
        """Write a verdict, and wait until it is on the disk. Returns why that could not be done, or nothing."""
        if self._file is None:
            return ""
        try:
            self._file.write(_line({"number": number, "kernel": kernel.spelling, **recorded(examination)}))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.close()
            return f"the journal is not kept any more: {self.path} cannot be written: {_why(error)}"
        return ""

    def close(self) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Opened = tuple[Journal, dict[int, Examination], str]
"""A journal, the verdicts in it by number, and what the user should know."""


def begin(path: Path, question: Mapping[str, Any], work: Work = ()) -> Opened:
    """A new journal. One of an earlier run is kept beside it.

    Raises: UsageError, in one line, where another file is in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = path.with_name(path.name + ".previous")
        for there in (path, earlier):
            if there.exists() and not _ours(there):
                raise UsageError(f"{there} is not a journal of assay: move it away, or name another with --journal")
        if path.exists():
            os.replace(path, earlier)
        beside = path.with_name(path.name + ".part")
        with open(beside, "wb") as file:
            file.write(_line({"format": FORMAT, "version": VERSION, "question": question}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        return Journal(path, _locked(path)), {}, ""
    except OSError as error:
        return (
            Journal(path, None),
            {},
            f"there is no journal of this run: {path} cannot be written: {_why(error)}",
        )


def resume(path: Path, question: Mapping[str, Any], work: Work) -> Opened:
    """The journal of a run that was ended.

    Raises: UsageError, in one line, for a journal that is not one of this question, or not a whole one.
    """
    try:
        if not path.exists():
            journal, done, told = begin(path, question)
            return journal, done, told or f"there is no journal {path} to resume: starting from the beginning"
        if not path.is_file():
            raise UsageError(f"{path} is not a file")
        file = _locked(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {_why(error)}") from None
    try:
        content = file.read()
        *lines, torn = content.split(b"\n")
        if not lines:
            raise UsageError(f"{path} is not a journal of assay")
        _same(path, _first(path, lines[0]), question)
        verdicts = lines[1:]
        if verdicts and not torn and _read(verdicts[-1]) is None:
            torn = verdicts.pop() + b"\n"
        done = _done(path, verdicts, work)
        if torn:
            file.truncate(len(content) - len(torn))
    except BaseException:
        file.close()
        raise
    return Journal(path, file), done, f"the last line of {path} was torn and is dropped" if torn else ""


def examples(path: Path) -> list[str] | None:
    """The names of the examples on which the kernels of an earlier run were tried; None if that cannot be said."""
    try:
        with open(path, "rb") as file:
            asked = (_read(file.readline(1 << 24)) or {}).get("question")
    except OSError:
        return None
    found = asked.get("examples") if isinstance(asked, dict) else None
    return found if isinstance(found, list) and all(isinstance(n, str) for n in found) else None


def question(kernels: Sequence[Known], work: Work, how: How, examples: Sequence[str] = ()) -> dict[str, Any]:
    """What a run depends on: two runs with the same question give the same verdicts. `examples`: the names of those on
    which kernels are tried first."""
    names = sorted({"assay", "numpy", "torch", "hypothesis", "python-flint", *(p for k in kernels for p in k.versions)})
    users = sorted({file for kernel in kernels for file in kernel.files})
    content = {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "assay": _digest(*(p.read_bytes() for p in sorted(Path(__file__).parent.rglob("*.py")))),
        "files": {file: _digest_of(Path(file)) for file in users},
        "work": [[kernel.spelling, dtype] for _, kernel, dtype in work],
        "effort": asdict(how.effort),
        "device": how.device,
        "claims": {key: value for key, value in how.claimed.items() if value},
        "examples": list(examples),
        "limits": None if how.limits is None else asdict(how.limits),
    }
    restored: dict[str, Any] = json.loads(json.dumps(jsonable(content)))
    return restored


# Lines ---------------------------------------------------------------------------------------------------------------


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content)
    return json.dumps({**content, "digest": _digest(text.encode())}).encode() + b"\n"


def _read(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is not a whole one."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    digest = content.pop("digest", None)
    return content if digest == _digest(json.dumps(content).encode()) else None


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]


def _digest_of(path: Path) -> str:
    """A user's module names its file itself: what is no ordinary file of ordinary size is not read."""
    try:
        return _digest(path.read_bytes()) if path.is_file() and path.stat().st_size < 1 << 26 else ""
    except (OSError, ValueError):
        return ""


def _first(path: Path, line: bytes) -> dict[str, Any]:
    header = _read(line)
    if header is None or header.get("format") != FORMAT:
        raise UsageError(f"{path} is not a journal of assay, or its first line was changed")
    if header.get("version") != VERSION:
        raise UsageError(f"{path} was written by another assay: its version is {header.get('version')}, not {VERSION}")
    return header


def _ours(path: Path) -> bool:
    """Is this a journal, whatever its question?"""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        header = _read(file.readline(1 << 24))
    return header is not None and header.get("format") == FORMAT


def _same(path: Path, header: Mapping[str, Any], question: Mapping[str, Any]) -> None:
    then = header.get("question")
    if not isinstance(then, dict):
        raise UsageError(f"{path} does not say what was asked")
    changed = [key for key in {**then, **question} if then.get(key) != question.get(key)]
    if changed:
        raise UsageError(
            f"{path} answers another question ({', '.join(changed)} changed): without --resume, a new one is begun"
        )


def _done(path: Path, lines: Sequence[bytes], work: Work) -> dict[int, Examination]:
    by_number = {number: (kernel, dtype) for number, kernel, dtype in work}
    done: dict[int, Examination] = {}
    for at, line in enumerate(lines, start=2):
        content = _read(line)
        try:
            if content is None:
                raise Unreadable("it was changed")
            number = get(content, "number", int)
            kernel, dtype = by_number.get(number, (None, ""))
            if kernel is None or (content.get("kernel"), content.get("dtype")) != (kernel.spelling, dtype):
                raise Unreadable("nobody asked for it")
            if number in done:
                raise Unreadable("it is there twice")
            done[number] = restored(kernel.name, content)
        except Unreadable as error:
            raise UsageError(f"line {at} of {path} cannot be used: {error}") from None
    return done


def _locked(path: Path) -> BinaryIO:
    file = open(path, "a+b")  # noqa: SIM115  # it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(f"another run is writing {path}") from None
    file.seek(0)
    return file


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


# Examinations --------------------------------------------------------------------------------------------------------


def recorded(examination: Examination) -> dict[str, Any]:
    """All that is reported of an examination, as JSON."""
    results = []
    for result in examination.results:
        results.append(
            {
                "property": result.property,
                "verdict": result.verdict,
                "cases": result.cases,
                "headroom": jsonable(result.headroom),
                "seconds": result.seconds,
                "message": result.message,
                "counterexample": result.counterexample,
                "values": dict(result.values),
                "miss": None if result.miss is None else jsonable(asdict(result.miss)),
                "diagnosis": [jsonable(asdict(f)) for f in result.diagnosis],
                "stored": result.stored,
            }
        )
    return {
        "dtype": examination.dtype,
        "results": results,
        "inferred": None if examination.inferred is None else jsonable(asdict(examination.inferred)),
        "not_covered": list(examination.not_covered),
        "atlas": [curve_as_json(c) for c in examination.atlas],
    }


def restored(kernel: str, content: Mapping[str, Any]) -> Examination:
    """Raises: Unreadable."""
    inferred = get(content, "inferred", dict, optional=True)
    not_covered = get(content, "not_covered", list)
    if not all(isinstance(n, str) for n in not_covered):
        raise Unreadable("'not_covered' must be a list of texts")
    return Examination(
        kernel,
        get(content, "dtype", str),
        [_result(r) for r in get(content, "results", list)],
        None
        if inferred is None
        else Inferred(get(inferred, "form", str), get(inferred, "precision", str), get(inferred, "headroom", float)),
        tuple(not_covered),
        tuple(map(_curve, get(content, "atlas", list))),
    )


def _result(content: Any) -> Result:
    if not isinstance(content, dict) or content.get("verdict") not in VERDICTS:
        raise Unreadable("a result must have a verdict")
    return Result(
        property=get(content, "property", str),
        verdict=content["verdict"],
        cases=get(content, "cases", int),
        headroom=get(content, "headroom", float, optional=True),
        seconds=get(content, "seconds", float),
        message=get(content, "message", str),
        counterexample=get(content, "counterexample", str),
        values=texts(content, "values"),
        miss=missed(get(content, "miss", dict, optional=True)),
        diagnosis=[finding(f) for f in get(content, "diagnosis", list)],
        stored=get(content, "stored", str),
    )


def curve_as_json(curve: Curve) -> dict[str, Any]:
    """A curve of the error atlas: of each class the least value, the elements, the middle and the worst."""
    classes = [jsonable([c.low, c.elements, c.middle, c.worst]) for c in curve.classes]
    return {"what": curve.what, "against": curve.against, "classes": classes}


def _curve(content: Any) -> Curve:
    if not isinstance(content, dict) or content.get("what") not in WHAT or content.get("against") not in LEAST:
        raise Unreadable("a curve must say what it is of, and against what")
    classes = []
    for row in get(content, "classes", list):
        if not isinstance(row, list) or len(row) != 4:
            raise Unreadable("a class of a curve must have four numbers")
        named = dict(zip(("low", "elements", "middle", "worst"), row, strict=True))
        classes.append(Class(*(get(named, key, int if key == "elements" else float) for key in named)))
    return Curve(content["what"], content["against"], tuple(classes))
