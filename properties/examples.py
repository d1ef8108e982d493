"""Cases in which some kernel broke a demand: another kernel of the same operator is tried on them first.

Only on those that could have been drawn for it: under a convention that it is judged under, and with keywords that it
has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from assay.properties.contract import Operator, Size, Tensor
from assay.properties.counterexample import Unreadable
from assay.properties.drawing import COMPLEX, DTYPES, Case


def belongs(operator: Operator, case: Case) -> None:
    """Raises: Unreadable where the arguments of a case are not those of an operator, as it is now."""
    optional = {i.name for i in operator.inputs if isinstance(i, Tensor) and i.optional}
    inputs = {i.name for i in operator.inputs}
    for name in inputs - optional - set(case.arguments):
        raise Unreadable(f"the case has no {name}, which {operator.name} takes")
    for name in set(case.arguments) - inputs - set(inspect.signature(operator.definition).parameters):
        raise Unreadable(f"{operator.name} takes no {name}, which the case has")
    for item in operator.inputs:
        value = case.arguments.get(item.name)
        kind = getattr(value, "dtype", type(value))
        if isinstance(item, Size):
            right = isinstance(value, int) and not isinstance(value, bool)
        elif isinstance(item, Tensor):
            own = COMPLEX.get(case.dtype) if item.complex else DTYPES[case.dtype]
            right = kind == own or (value is None and item.optional)
        else:
            right = isinstance(kind, np.dtype) and kind.kind in "iu"
        if not right:
            raise Unreadable(f"{item.name} of the case is of {getattr(kind, '__name__', kind)}, in {case.dtype}")


def suited(
    operator: Operator, case: Case, supports: Callable[[str], bool], conventions: Mapping[str, tuple[str, ...]]
) -> Case | None:
    """The case as it would have been drawn for a kernel; None where it would not have been.

    `supports`, `conventions`: as for drawing. Raises: Unreadable where it is no case of the operator.
    """
    belongs(operator, case)
    usual = {p.name: p.default for p in operator.parameters}
    arguments = {**case.arguments, **{n: v for n, v in usual.items() if n not in case.arguments}}
    for name, values in operator.conventions.items():
        asked = arguments.setdefault(name, values[0])
        if asked not in conventions[name]:
            return None
        if len(conventions[name]) == 1 and asked == values[0]:
            del arguments[name]
    takes = inspect.signature(operator.definition).parameters.values()
    defaults: dict[str, Any] = {p.name: p.default for p in takes if p.default is not p.empty}  # the others always come
    for name, default in {**defaults, **usual}.items():
        if name in arguments and name not in operator.conventions and not supports(name):
            if not _same(arguments[name], default):
                return None
            if name not in usual:
                del arguments[name]
    return replace(case, arguments=arguments)


def _same(one: Any, two: Any) -> bool:
    return one is two or (not isinstance(one, np.ndarray) and bool(one == two))
