"""What a contract says, in words: for `assay explain`, and for the pages of the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from assay.properties.contract import Input, Operator, Size, Tensor


Entries = tuple[tuple[str, str], ...]
"""Names, and what is said of each; of some, nothing."""


def explained(operator: Operator) -> str:
    """All of it, for a terminal."""
    lines = [signature(operator), ""]
    for text in texts(operator):
        lines += [*text.splitlines(), ""]
    for title, entries in sections(operator).items():
        lines += [f"{title}:", *(f"  {name}: {text}" if text else f"  {name}" for name, text in entries), ""]
    return "\n".join(lines).rstrip()


def texts(operator: Operator) -> list[str]:
    """What the definition says of itself: its module (the formula, the axes, the source), then the function."""
    module = inspect.getmodule(operator.definition)
    return [text for text in (module and inspect.getdoc(module), inspect.getdoc(operator.definition)) if text]


def sections(operator: Operator) -> Mapping[str, Entries]:
    """What the contract says, by title; nothing that it is silent about."""
    o = operator
    found: dict[str, Entries] = {
        "Inputs": tuple(map(_input, o.inputs)),
        "Parameters": tuple(
            (p.name, f"{_number(p.default)}, judged from {p.low:g} to {p.high:g}") for p in o.parameters
        ),
        "Conventions (the first is the default)": tuple((n, ", ".join(values)) for n, values in o.conventions.items()),
        "Settings": tuple((", ".join(f"{n}={value}" for n, value in setting.items()), "") for setting in o.settings),
        "Forms": tuple((name, _summary(text)) for name, text in o.texts.items()),
        "Properties": tuple((p.name, p.law) for p in o.properties),
        "Source": ((o.source, ""),) if o.source else (),
    }
    return {title: entries for title, entries in found.items() if entries}


def signature(operator: Operator) -> str:
    """As one calls it: `rope(x, position, *, base=10000)`."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(operator.definition).parameters.values()
        if p.name != "xp"  # the arithmetic, which is no business of a caller
    ]
    return f"{operator.name}{inspect.Signature(parameters)}"


def _input(item: Input) -> tuple[str, str]:
    """An input with its axes: `x[b, t]`."""
    if isinstance(item, Size):
        return item.name, f"the length of axis {item.axes}"
    told = []
    if isinstance(item, Tensor):
        told = [word for word, holds in (("complex", item.complex), ("optional", item.optional)) if holds]
        told += [f"{axis} is even" for axis in item.even.split()]
    else:
        told = ["integers"]
    return f"{item.name}[{', '.join(item.axes.split())}]", ", ".join(told)


def _number(value: float | None) -> str:
    return "(depends on the sizes)" if value is None else f"{value:g}"


def _summary(function: Callable[..., Any]) -> str:
    """The first paragraph of its docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
