"""A counterexample: the smallest case found in which a kernel breaks a demand, as data that can be stored.

`described` turns one into a JSON object and raw arrays, `restored` turns those back and refuses whatever it did not
write. Nothing is pickled, nothing is evaluated; arrays come back bit for bit, lying in memory as they lay. Files are no
business of this room.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from assay.properties.diagnosis import Finding
from assay.properties.drawing import DTYPES, MEMORY, Case, Values, place
from assay.properties.trial import Miss


FORMAT = "assay counterexample"
VERSION = 1

T = TypeVar("T")

_PLAIN = ("float64", "float32", "float16", "complex64", "complex128", "bool")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
STORED: dict[str, tuple[np.dtype[Any], np.dtype[Any]]] = {
    **{name: (np.dtype(name), np.dtype(name)) for name in (*_PLAIN, *_INTEGERS)},
    # NumPy's file format does not know these: their raw bits are stored, and the dtype is named in the JSON.
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)),
    "float8_e4m3fn": (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.uint8)),
    "float8_e5m2": (np.dtype(ml_dtypes.float8_e5m2), np.dtype(np.uint8)),
}
"""By name: the dtype of an array, and the dtype in which its bits are stored."""


class Unreadable(ValueError):
    """What was read is not a counterexample, or not a whole one; the message says why, in one line."""


@dataclass(frozen=True, eq=False)
class Counterexample:
    """One failure: the kernel, what it claimed, what was demanded, the case, and what was found."""

    operator: str
    kernel: str
    """OPERATOR=MODULE:FUNCTION; empty for a function that cannot be found by a name."""
    folder: str | None
    """Where MODULE is looked for, seen from the place where the counterexample is stored; None: it is installed."""
    property: str
    case: Case
    form: str | None
    precision: str | None
    conventions: Mapping[str, str]
    device: str
    verdict: str
    message: str
    world: int = 1
    ranks: str = "sum"
    miss: Miss | None = None
    diagnosis: tuple[Finding, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def digest(counterexample: Counterexample) -> str:
    """Names the question, not the answer: the same for the same kernel, claims, property and case."""
    content, arrays = _question(counterexample)
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(arrays):
        found.update(name.encode() + b"\0" + arrays[name].tobytes())
    return found.hexdigest()[:16]


def described(counterexample: Counterexample) -> tuple[dict[str, Any], dict[str, Values]]:
    """A JSON object, and the arrays that it speaks of, by argument."""
    c = counterexample
    question, arrays = _question(c)
    found = {"verdict": c.verdict, "message": c.message, "miss": None if c.miss is None else jsonable(asdict(c.miss))}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "digest": digest(c),
        **question,
        "found": found,
        "diagnosis": [jsonable(asdict(f)) for f in c.diagnosis],
        "versions": dict(c.versions),
    }
    return content, arrays


def _question(c: Counterexample) -> tuple[dict[str, Any], dict[str, Values]]:
    arguments = {name: _argument(value, c.case.memory.get(name)) for name, value in c.case.arguments.items()}
    content = {
        "operator": c.operator,
        "kernel": c.kernel,
        "folder": c.folder,
        "property": c.property,
        "device": c.device,
        "claims": {"form": c.form, "precision": c.precision, "conventions": dict(c.conventions), **_over(c)},
        "dtype": c.case.dtype,
        "regime": c.case.regime,
        "seed": c.case.seed,
        "arguments": arguments,
    }
    arrays = {n: _bits(v) for n, v in c.case.arguments.items() if isinstance(v, np.ndarray)}
    return content, arrays


def _over(c: Counterexample) -> dict[str, Any]:
    """Over how many ranks the kernel was called, where it was more than one."""
    return {} if c.world == 1 else {"world": c.world, "ranks": c.ranks}


def _argument(value: Any, memory: str | None) -> Any:
    if isinstance(value, np.ndarray):
        if str(value.dtype) not in STORED:
            raise TypeError(f"an array of {value.dtype} cannot be stored")
        return {"array": str(value.dtype), "shape": list(value.shape), "memory": memory}
    return jsonable(value)


def _bits(values: Values) -> Values:
    """The array, contiguous, in a dtype that NumPy's file format knows."""
    return np.ascontiguousarray(values).reshape(values.shape).view(STORED[str(values.dtype)][1])


def jsonable(value: Any) -> Any:
    """JSON has neither infinities nor NaN, and no tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an argument of type {type(value).__name__} cannot be stored")


# Reading back --------------------------------------------------------------------------------------------------------


def restored(content: Any, arrays: Mapping[str, Any]) -> Counterexample:
    """The counterexample that was described. Raises: Unreadable, in one line."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Unreadable("it is not a counterexample of assay")
    version = get(content, "version", int)
    if version > VERSION:
        raise Unreadable(f"a newer assay wrote it: its version is {version}, and this assay reads up to {VERSION}")
    if version < 1:
        raise Unreadable(f"there is no version {version}")
    claims = get(content, "claims", dict)
    found = get(content, "found", dict)
    out = Counterexample(
        operator=get(content, "operator", str),
        kernel=get(content, "kernel", str),
        folder=get(content, "folder", str, optional=True),
        property=get(content, "property", str),
        case=_case(content, arrays),
        form=get(claims, "form", str, optional=True),
        precision=get(claims, "precision", str, optional=True),
        conventions=texts(claims, "conventions"),
        world=get({"world": 1, **claims}, "world", int),
        ranks=get({"ranks": "sum", **claims}, "ranks", str),
        device=get(content, "device", str),
        verdict=get(found, "verdict", str),
        message=get(found, "message", str),
        miss=missed(get(found, "miss", dict, optional=True)),
        diagnosis=tuple(map(finding, get(content, "diagnosis", list))),
        versions=texts(content, "versions"),
    )
    if digest(out) != get(content, "digest", str):
        raise Unreadable("its digest does not fit its content: the file or its arrays were changed")
    return out


_KINDS: dict[type, str] = {str: "a text", int: "an integer", float: "a number", dict: "an object", list: "a list"}


def get(content: Mapping[str, Any], key: str, kind: type[T], *, optional: bool = False) -> Any:
    """A value of the demanded kind; a number may be written as an integer."""
    if key not in content:
        raise Unreadable(f"{key!r} is missing")
    value = _number(content[key]) if kind is float else content[key]
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, kind):
        raise Unreadable(f"{key!r} must be {_KINDS[kind]}, not {json.dumps(content[key])[:60]}")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        value = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(str(value.get("float")), value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def texts(content: Mapping[str, Any], key: str) -> dict[str, str]:
    table = get(content, key, dict)
    return {name: get(table, name, str) for name in table}


def missed(content: Mapping[str, Any] | None) -> Miss | None:
    """The element that a JSON object describes. Raises: Unreadable."""
    if content is None:
        return None
    index = get(content, "index", list)
    if not all(type(i) is int for i in index):
        raise Unreadable("'index' must be a list of integers")
    return Miss(
        what=get(content, "what", str),
        index=tuple(index),
        exact=get(content, "exact", float),
        got=get(content, "got", float),
        bound=get(content, "bound", float),
        wrong=get(content, "wrong", int),
        size=get(content, "size", int),
    )


def finding(content: Any) -> Finding:
    """Fields that this assay does not know are dropped: a finding is told, never computed with."""
    if not isinstance(content, dict):
        raise Unreadable("'diagnosis' must be a list of objects")
    for key in ("kind", "name", "text"):
        get(content, key, str)
    known = {f.name for f in fields(Finding)} & set(content)
    return Finding(**{key: _value(content[key], key) for key in known})


def _case(content: Mapping[str, Any], arrays: Mapping[str, Any]) -> Case:
    dtype = get(content, "dtype", str)
    if dtype not in DTYPES:
        raise Unreadable(f"there is no dtype {dtype!r}")
    seed = get(content, "seed", int)
    if seed < 0:
        raise Unreadable(f"'seed' must not be negative, as {seed} is")
    memory: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for name, value in get(content, "arguments", dict).items():
        if isinstance(value, dict) and "array" in value:
            lies = get(value, "memory", str, optional=True)
            if lies not in (None, *MEMORY):
                raise Unreadable(f"{name!r} lies in memory as {lies!r}, which is unknown")
            if lies is not None:
                memory[name] = lies
            arguments[name] = place(_array(name, value, arrays), lies or "contiguous")
            arguments[name].flags.writeable = False
        else:
            arguments[name] = _value(value, name)
    return Case(dtype, arguments, get(content, "regime", str), seed, memory)


def _array(name: str, told: Mapping[str, Any], arrays: Mapping[str, Any]) -> Values:
    dtype = get(told, "array", str)
    if dtype not in STORED:
        raise Unreadable(f"{name!r} has the unknown dtype {dtype!r}")
    if name not in arrays:
        raise Unreadable(f"the array {name!r} is missing")
    values = arrays[name]
    true, stored = STORED[dtype]
    if not isinstance(values, np.ndarray) or values.dtype != stored:
        raise Unreadable(f"the array {name!r} must be stored as {stored}, not {getattr(values, 'dtype', 'bytes')}")
    if list(values.shape) != get(told, "shape", list):
        raise Unreadable(f"the array {name!r} has shape {list(values.shape)} instead of {told['shape']}")
    return values.view(true)


def _value(value: Any, name: str) -> Any:
    """A number, a text, a truth value, None, or a tuple of those."""
    if isinstance(value, list):
        return tuple(_value(v, name) for v in value)
    value = _number(value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        raise Unreadable(f"{name!r} must not be {json.dumps(value)[:60]}")
    return value
