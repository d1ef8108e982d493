"""Finding kernels: those of assay, those of installed packages, and those that a user names.

A user names a kernel OPERATOR=MODULE:FUNCTION, where MODULE is a dotted name or a path to a .py file; MODULE alone
means every decorated function and every Operator in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from assay.impl.kernel import Claims
from assay.loading import UsageError as UsageError, decorated, files, load as load, loaded_as, look
from assay.properties import OPERATORS
from assay.properties.contract import Operator
from assay.questions import Signature, signature


if TYPE_CHECKING:
    from assay.process import Limits
    from assay.properties.trial import Subject
    from assay.sharded import Sharded


MODULES = (
    "assay.impl.rope",
    "assay.impl.attention",
    "assay.impl.linear_attention",
    "assay.impl.performer",
    "assay.impl.projection",
    "assay.impl.contrastive",
    "assay.impl.sharded",
    "assay.impl.selective_scan",
    "assay.impl.discretize",
    "assay.impl.hippo",
    "assay.impl.hippo_project",
    "assay.impl.state_space",
    "assay.impl.convolution",
    "assay.impl.s4",
    "assay.impl.dplr",
    "assay.impl.triton.rope",
    "assay.impl.triton.linear_attention",
    "assay.impl.triton.performer",
    "assay.impl.triton.contrastive",
    "assay.impl.triton.selective_scan",
    "assay.impl.adapters.torch",
    "assay.impl.adapters.transformers",
    "assay.impl.adapters.rotary_embedding_torch",
    "assay.impl.adapters.x_transformers",
    "assay.impl.adapters.local_attention",
    "assay.impl.adapters.torchtune",
    "assay.impl.adapters.torchscale",
    "assay.impl.adapters.timm",
    "assay.impl.adapters.onnx",
    "assay.impl.adapters.onnxruntime",
    "assay.impl.adapters.liger_kernel",
    "assay.impl.adapters.fla",
    "assay.impl.adapters.performer_pytorch",
    "assay.impl.adapters.linear_attention_transformer",
    "assay.impl.adapters.lightning_attn",
    "assay.impl.adapters.open_clip",
    "assay.impl.adapters.pytorch_metric_learning",
    "assay.impl.adapters.mambapy",
    "assay.impl.adapters.scipy",
    "assay.impl.adapters.accelerated_scan",
    "assay.impl.adapters.s5",
    "assay.impl.adapters.keras",
    "assay.impl.adapters.jax",
)
"""Where the kernels known to assay are. Adding one is a line here."""


@dataclass(frozen=True)
class Known:
    """A kernel, its operator and its claims."""

    name: str
    operator: Operator
    claims: Claims
    place: str
    """MODULE:FUNCTION."""
    function: Callable[..., Any] | None
    """None: it is a user's, and has not been imported here."""
    signature: Signature
    own: bool = True
    """The claims are those that it makes itself, of this operator."""
    files: tuple[str, ...] = ()
    """The file of a user's module, and those of its neighbours."""

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

    def subject(self, device: str = "cpu", limits: Limits | None = None) -> Subject:
        """The kernel as the judge sees it: called in a process of its own, within limits, or in this one.

        Raises: UsageError for a kernel over several ranks without limits.
        """
        if limits is None:
            if self.claims.world > 1:
                raise UsageError(f"{self.name} runs over {self.claims.world} ranks, each in a process of its own")
            from assay.runner import TorchSubject

            assert self.function is not None
            return TorchSubject(self.name, self.function, self.claims, keywords(self.operator), device=device)
        from assay.remote import WorkerSubject

        kind: type[WorkerSubject | Sharded] = WorkerSubject
        if self.claims.world > 1:
            from assay.sharded import Sharded as kind
        known = keywords(self.operator)
        return kind(self.name, self.place, self.claims, self.signature, known, limits, device=device, own=self.own)


def known_kernels(operators: Mapping[str, Operator] = OPERATORS) -> tuple[list[Known], dict[str, str]]:
    """The kernels of assay and of installed packages; and the names of those left out, each with the reason."""
    found: list[Known] = []
    left_out: dict[str, str] = {}
    for module_name in MODULES:
        short = module_name.removeprefix("assay.impl.").removeprefix("adapters.")
        if not module_name.startswith("assay.impl.adapters.") and _missing(short.partition(".")[0]):
            left_out[short] = f"{short.partition('.')[0]} is not installed"
            continue
        module = importlib.import_module(module_name)
        for kernel in kernels_in(module, operators, module_name, prefix=short, offered=True):
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
    for found in decorated(module):
        assert found.claims is not None
        if offered and found.claims.operator not in operators:
            continue
        operator = operator_named(found.claims.operator, operators)
        name, takes = f"{prefix}:{found.name}", signature(found.function)
        out.append(Known(name, operator, found.claims, f"{place}:{found.name}", found.function, takes))
    return out


def operator_named(name: str, operators: Mapping[str, Operator] = {}) -> Operator:
    """Raises: UsageError for an operator that neither assay nor the user's module has."""
    operator = operators.get(name) or OPERATORS.get(name)
    if operator is None:
        names = ", ".join(sorted({*OPERATORS, *operators}))
        raise UsageError(f"there is no operator {name!r}; known here: {names}")
    return operator


def resolve(spelling: str, limits: Limits | None = None) -> list[Known]:
    """The kernels that a spelling means. With limits, a user's module is imported in a process of its own; here, only
    if it defines operators.

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
    if limits is None or module_name.startswith("assay."):
        here = look(module_name, function_name)
        found: list[_Found] = [(f.name, f.claims, signature(f.function), f.function) for f in here]
        operators, users = _operators(loaded_as(module_name)), tuple(files(module_name))
    else:
        from assay.remote import describe

        told = describe(module_name, function_name, limits)
        found = [(k.name, k.claims, k.signature, None) for k in told.kernels]
        operators, users = _operators(load(module_name) if told.operators else None), told.files
    out = []
    for name, claims, takes, function in found:
        if not operator_name and claims is None:
            raise UsageError(f"{place} claims no operator: write OPERATOR={place}")
        operator = operator_named(operator_name or claims.operator, operators)  # type: ignore[union-attr]
        own = claims is not None and claims.operator == operator.name
        spelled = f"{module_name}:{name}"
        out.append(
            Known(
                name=spelled,
                operator=operator,
                claims=claims if own and claims is not None else Claims(operator.name),
                place=spelled,
                function=function,
                signature=takes,
                own=own,
                files=users,
            )
        )
    return out


_Found = tuple[str, Claims | None, Signature, Callable[..., Any] | None]


def _operators(module: ModuleType | None) -> dict[str, Operator]:
    """The operators that a user's module defines."""
    return {v.name: v for v in (vars(module) if module else {}).values() if isinstance(v, Operator)}


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


def keywords(operator: Operator) -> frozenset[str]:
    """Everything that a kernel of this operator receives by keyword."""
    import inspect

    parameters = inspect.signature(operator.definition).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def chosen(spellings: Sequence[str], limits: Limits | None = None) -> tuple[list[Known], dict[str, str]]:
    """The kernels named, or, if none is, all that are known here. An operator alone names all known kernels of it.

    `limits`: as for `resolve`.
    """
    if not spellings:
        return known_kernels()
    found: list[Known] = []
    left_out: dict[str, str] = {}
    for spelling in spellings:
        if spelling in OPERATORS and not Path(spelling).exists():
            known, left = known_kernels({spelling: OPERATORS[spelling]})
            found += known
            left_out |= left
        else:
            found += resolve(spelling, limits)
    return found, left_out
