"""Finding kernels: those of assay, those of installed packages, and those that a user names.

A user names a kernel OPERATOR=MODULE:FUNCTION, where MODULE is a dotted name or a path to a .py file; MODULE alone
means every decorated function and every Operator in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from assay.impl.kernel import Claims, claims_of
from assay.properties import OPERATORS
from assay.properties.contract import Operator


MODULES = (
    "assay.impl.rope",
    "assay.impl.attention",
    "assay.impl.linear_attention",
    "assay.impl.triton.rope",
    "assay.impl.triton.linear_attention",
    "assay.impl.adapters.torch",
    "assay.impl.adapters.transformers",
    "assay.impl.adapters.rotary_embedding_torch",
    "assay.impl.adapters.x_transformers",
    "assay.impl.adapters.torchtune",
    "assay.impl.adapters.timm",
    "assay.impl.adapters.onnx",
    "assay.impl.adapters.onnxruntime",
    "assay.impl.adapters.liger_kernel",
    "assay.impl.adapters.fla",
    "assay.impl.adapters.performer_pytorch",
    "assay.impl.adapters.linear_attention_transformer",
    "assay.impl.adapters.lightning_attn",
)
"""Where the kernels known to assay are. Adding one is a line here."""

ROOMS = ("impl", "reference", "properties", "ci")


class UsageError(Exception):
    """What the user asked for cannot be done as written: one line that says what to do."""


@dataclass(frozen=True)
class Known:
    """A kernel, its operator and its claims."""

    name: str
    operator: Operator
    function: Callable[..., Any]
    claims: Claims
    place: str
    """MODULE:FUNCTION."""

    @property
    def spelling(self) -> str:
        """OPERATOR=MODULE:FUNCTION, from which any process finds it again."""
        return f"{self.operator.name}={self.place}"

    def claiming(self, **changes: Any) -> Known:
        """The same kernel with other claims; None changes nothing."""
        given = {key: value for key, value in changes.items() if value}
        if "conventions" in given:
            given["conventions"] = {**self.claims.conventions, **given["conventions"]}
        return replace(self, claims=replace(self.claims, **given))

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that it needs."""
        return {package: metadata.version(package) for package in self.claims.requires}


def known_kernels() -> tuple[list[Known], dict[str, str]]:
    """The kernels of assay and of installed packages; and the names of those left out, each with the reason."""
    found: list[Known] = []
    left_out: dict[str, str] = {}
    for module_name in MODULES:
        short = module_name.removeprefix("assay.impl.").removeprefix("adapters.")
        if not module_name.startswith("assay.impl.adapters.") and _missing(short.partition(".")[0]):
            left_out[short] = f"{short.partition('.')[0]} is not installed"
            continue
        module = importlib.import_module(module_name)
        for kernel in kernels_in(module, OPERATORS, module_name, prefix=short, offered=True):
            missing = [p for p in kernel.claims.requires if not _installed(p)]
            if missing:
                left_out[kernel.name] = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
            elif kernel.claims.interpreted and not _has_gpu() and os.environ.get("TRITON_INTERPRET") != "1":
                left_out[kernel.name] = "there is no GPU and TRITON_INTERPRET=1 is not set"
            else:
                found.append(kernel)
    return found, left_out


def _missing(folder: str) -> bool:
    return folder == "triton" and importlib.util.find_spec("triton") is None


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def kernels_in(
    module: ModuleType, operators: Mapping[str, Operator], place: str, *, prefix: str, offered: bool = False
) -> list[Known]:
    """Every decorated function that is defined in a module, in the order in which it stands there.

    `offered`: only those whose operator is among `operators`; otherwise one of an unknown operator is an error.
    """
    out = []
    for name, value in vars(module).items():
        claims = claims_of(value)
        if claims is None or getattr(value, "__module__", None) != module.__name__:
            continue
        if offered and claims.operator not in operators:
            continue
        operator = operator_named(claims.operator, operators)
        out.append(Known(f"{prefix}:{name}", operator, value, claims, f"{place}:{name}"))
    return out


def operator_named(name: str, operators: Mapping[str, Operator] = {}) -> Operator:
    """Raises: UsageError for an operator that neither assay nor the user's module has."""
    operator = operators.get(name) or OPERATORS.get(name)
    if operator is None:
        names = ", ".join(sorted({*OPERATORS, *operators}))
        raise UsageError(f"there is no operator {name!r}; known here: {names}")
    return operator


def resolve(spelling: str) -> list[Known]:
    """The kernels that a spelling means.

    Raises: UsageError, in one line, for anything that cannot be found or imported.
    """
    operator_name, equals, place = spelling.partition("=") if "=" in spelling else ("", "", spelling)
    module_name, colon, function_name = place.rpartition(":")
    if not colon:
        module_name, function_name = place, ""
    if equals and not function_name:
        raise UsageError(f"{spelling!r} names no function: write OPERATOR=MODULE:FUNCTION")
    if equals and operator_name not in OPERATORS and not operator_name.isidentifier():
        raise UsageError(f"{operator_name!r} is not the name of an operator: write OPERATOR=MODULE:FUNCTION")
    if not module_name:
        raise UsageError(f"{spelling!r} names no module: write OPERATOR=MODULE:FUNCTION")
    module = load(module_name)
    operators = {v.name: v for v in vars(module).values() if isinstance(v, Operator)}
    if not function_name:
        found = kernels_in(module, operators, module_name, prefix=module_name)
        if not found:
            raise UsageError(f"{module_name} has no function decorated with @assay.kernel")
        return found
    if not hasattr(module, function_name):
        raise UsageError(f"{module_name} has no function {function_name!r}")
    function = getattr(module, function_name)
    if not callable(function):
        raise UsageError(f"{function_name!r} in {module_name} is not a function")
    claims = claims_of(function)
    if not operator_name and claims is None:
        raise UsageError(f"{place} claims no operator: write OPERATOR={place}")
    operator = operator_named(operator_name or claims.operator, operators)  # type: ignore[union-attr]
    if claims is None or claims.operator != operator.name:
        claims = Claims(operator.name)
    return [Known(place, operator, function, claims, place)]


def importable(function: Callable[..., Any], operator: Operator) -> str:
    """MODULE:FUNCTION, by which another process finds a function and its operator; empty if there is no such name."""
    modules = [vars(sys.modules[name]) for f in (function, operator.definition) if (name := _module_of(f))]
    for names in (getattr(function, "__globals__", {}), *modules, getattr(operator.definition, "__globals__", {})):
        own = next((n for n, v in names.items() if v is function and n.isidentifier()), "")
        file = names.get("__file__")
        if not own or not (operator.name in OPERATORS or any(v is operator for v in names.values())):
            continue
        if names.get("__package__"):  # a part of a package imports its neighbours by their dotted names
            return f"{names['__name__']}:{own}"
        if file:
            return f"{Path(file).resolve()}:{own}"
    return ""


def _module_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__module__", None) or ""
    return name if name in sys.modules else ""


def load(module_name: str) -> ModuleType:
    """Import a user's module, by dotted name or by path. What it raises becomes one line."""
    path = Path(module_name)
    if module_name.endswith(".py") or os.sep in module_name:
        if not path.is_file():
            raise UsageError(f"there is no file {module_name}")
        name = f"assay_user_{path.stem}" if not path.stem.isidentifier() else path.stem
        known = sys.modules.get(name)
        if known is not None and getattr(known, "__file__", None) != str(path.resolve()):
            name = f"assay_user_{path.stem}"  # a file called json.py must not become json
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        if spec is None or spec.loader is None:
            raise UsageError(f"{module_name} cannot be read as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        folder = str(path.resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)  # so that the file can import its neighbours
        return _imported(module_name, lambda: (spec.loader.exec_module(module), module)[1])  # type: ignore[union-attr]
    if module_name.partition(".")[0] in ROOMS:
        raise UsageError(f"{module_name} is a folder of assay's sources: write assay.{module_name}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    return _imported(module_name, lambda: importlib.import_module(module_name))


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
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {text} (line {line})") from None


def keywords(operator: Operator) -> frozenset[str]:
    """Everything that a kernel of this operator receives by keyword."""
    import inspect

    parameters = inspect.signature(operator.definition).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def chosen(spellings: Sequence[str]) -> tuple[list[Known], dict[str, str]]:
    """The kernels named, or, if none is, all that are known here. An operator alone names all known kernels of it."""
    if not spellings:
        return known_kernels()
    found: list[Known] = []
    left_out: dict[str, str] = {}
    for spelling in spellings:
        if spelling in OPERATORS and not Path(spelling).exists():
            known, left = known_kernels()
            found += [k for k in known if k.operator.name == spelling]
            left_out |= left
        else:
            found += resolve(spelling)
    return found, left_out
