"""The cases on which kernels are timed: ordinary numbers, contiguous, positions counted from zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from assay.properties.contract import Integers, Operator, Size, Tensor, Work
from assay.properties.drawing import DTYPES, Case


def timed_case(operator: Operator, name: str, dtype: str, *, seed: int = 0) -> Case:
    """The case of a contract's table `timed` that has this name."""
    structure = operator.timed[name]
    random = np.random.default_rng(seed)
    arguments: dict[str, Any] = dict(structure.keywords)
    for item in operator.inputs:
        if isinstance(item, Tensor) and item.optional:
            continue
        shape = tuple(structure.sizes[axis] for axis in structure.axes.get(item.name, item.axes).split())
        if isinstance(item, Size):
            (arguments[item.name],) = shape
        elif isinstance(item, Integers):
            counted = np.arange(shape[0], dtype=np.int64).reshape(-1, *(1,) * (len(shape) - 1))
            arguments[item.name] = np.ascontiguousarray(np.broadcast_to(counted, shape))
        else:
            arguments[item.name] = random.standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype])
    if not operator.tensors:
        arguments["dtype"] = dtype
    for parameter in operator.parameters:
        arguments[parameter.name] = parameter.default
    return Case(dtype, arguments, "ordinary", seed)


def work_of(operator: Operator, name: str, dtype: str, *, backward: bool) -> Work:
    """The least work of that case."""
    assert operator.work is not None  # the contract refuses timed cases without it
    structure = operator.timed[name]
    itemsize = DTYPES[dtype].itemsize
    return operator.work(**structure.sizes, **structure.keywords, itemsize=itemsize, backward=backward)
