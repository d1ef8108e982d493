"""assay: numerical kernels, held against the exact answer.

Public names load when they are first used: importing assay loads neither torch nor numpy nor hypothesis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from array_api_compat import array_namespace as array_namespace

    from assay.conformance import conformance as conformance
    from assay.impl.kernel import kernel as kernel
    from assay.properties import OPERATORS as OPERATORS
    from assay.properties.contract import (
        Integers as Integers,
        Operator as Operator,
        Positive as Positive,
        Property as Property,
        Real as Real,
        Structure as Structure,
        Tensor as Tensor,
        Work as Work,
    )
    from assay.properties.judgement import examine as examine
    from assay.properties.run import Effort as Effort
    from assay.reference.arithmetic.array import narrow as narrow, store as store, widen as widen

_PUBLIC = {
    "Effort": "assay.properties.run",
    "Integers": "assay.properties.contract",
    "OPERATORS": "assay.properties",
    "Operator": "assay.properties.contract",
    "Positive": "assay.properties.contract",
    "Property": "assay.properties.contract",
    "Real": "assay.properties.contract",
    "Structure": "assay.properties.contract",
    "Tensor": "assay.properties.contract",
    "Work": "assay.properties.contract",
    "array_namespace": "array_api_compat",
    "conformance": "assay.conformance",
    "examine": "assay.properties.judgement",
    "kernel": "assay.impl.kernel",
    "narrow": "assay.reference.arithmetic.array",
    "store": "assay.reference.arithmetic.array",
    "widen": "assay.reference.arithmetic.array",
}

__all__ = [  # every name is in _PUBLIC, which a test checks
    *sorted(_PUBLIC)
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
