"""Importing a user's module, and finding the kernels in it. Nothing here knows operators or their contracts."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from assay.impl.kernel import Claims, claims_of
from assay.lines import one_line, shortened, type_name


ROOMS = ("impl", "reference", "properties", "ci")


class UsageError(Exception):
    """What the user asked for cannot be done as written: one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, 500))  # names and texts that a stranger chose may be in it


@dataclass(frozen=True)
class Found:
    """A function in a user's module, and what it claims, if anything."""

    name: str
    function: Callable[..., Any]
    claims: Claims | None


def look(module_name: str, function_name: str = "") -> list[Found]:
    """The function of that name; or, without a name, every decorated function that is defined in the module.

    Raises: UsageError, in one line, for anything that cannot be imported or found.
    """
    module = load(module_name)
    if not function_name:
        found = list(decorated(module))
        if not found:
            raise UsageError(f"{module_name} has no function decorated with @assay.kernel")
        return found
    try:
        function = getattr(module, function_name)
    except AttributeError:
        raise UsageError(f"{module_name} has no function {function_name!r}") from None
    if not callable(function):
        raise UsageError(f"{function_name!r} in {module_name} is not a function")
    return [Found(function_name, function, claims_of(function))]


def decorated(module: ModuleType) -> Iterator[Found]:
    """In the order in which they stand there."""
    for name, value in vars(module).items():
        claims = claims_of(value)
        if claims is not None and getattr(value, "__module__", None) == module.__name__:
            yield Found(name, value, claims)


def load(module_name: str) -> ModuleType:
    """Import a user's module, by dotted name or by path. Raises: UsageError; whatever it raises becomes one line."""
    if module_name.endswith(".py") or os.sep in module_name:
        return _load_file(module_name)
    if module_name.partition(".")[0] in ROOMS:
        raise UsageError(f"{module_name} is a folder of assay's sources: write assay.{module_name}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    return _imported(module_name, lambda: importlib.import_module(module_name))


def _load_file(module_name: str) -> ModuleType:
    try:
        path = Path(module_name).resolve()
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise UsageError(f"there is no file {module_name}")
    name = f"assay_user_{path.stem}" if not path.stem.isidentifier() else path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        name = f"assay_user_{path.stem}"  # a file called json.py must not become json
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{module_name} cannot be read as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that the file can import its neighbours
    return _imported(module_name, lambda: (spec.loader.exec_module(module), module)[1])  # type: ignore[union-attr]


def _imported(name: str, run: Callable[[], ModuleType]) -> ModuleType:
    try:
        return run()
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (name == missing or name.startswith(missing + ".")):
            raise UsageError(f"there is no module {name}") from None
        raise UsageError(f"{name} needs {missing or 'a module'}, which is not installed") from None
    except BaseException as error:
        line = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__))), None)
        raise UsageError(f"{name} cannot be imported: {type_name(error)}: {one_line(error)} (line {line})") from None


def files(module_name: str) -> list[str]:
    """The files of a user's module, its own first, and of all that is loaded and not installed."""
    installed = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    installed += [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    ours = str(Path(__file__).parent)
    loaded = {str(getattr(m, "__file__", None) or "") for m in list(sys.modules.values())}
    module = loaded_as(module_name)
    own = str(getattr(module, "__file__", None) or "")
    users = (f for f in loaded if f.endswith(".py") and os.path.isabs(f) and not _under(f, (*installed, ours)))
    return list(dict.fromkeys([own, *sorted(users)])) if own else []


def _under(file: str, folders: Iterable[str]) -> bool:
    return any(file.startswith(folder + os.sep) for folder in folders)


def loaded_as(module_name: str) -> ModuleType | None:
    if module_name.endswith(".py") or os.sep in module_name:
        path = str(Path(module_name).resolve())
        return next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == path), None)
    return sys.modules.get(module_name)
