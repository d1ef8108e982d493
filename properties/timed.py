"""The cases on which kernels are timed: ordinary numbers, or those of a regime of the contract, contiguous, positions
counted from zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.properties.contract import Integers, Operator, Size, Tensor, Work
from assay.properties.drawing import DTYPES, Case, rounded
from assay.reference.arithmetic.precision import FORMATS


def timed_case(operator: Operator, name: str, dtype: str, *, seed: int = 0) -> Case:
    """The case of a contract's table `timed` that has this name."""
    structure = operator.timed[name]
    random = np.random.default_rng(seed)
    arguments: dict[str, Any] = dict(structure.keywords)
    required = [i for i in operator.inputs if not (isinstance(i, Tensor) and i.optional)]
    axes = {i.name: structure.axes.get(i.name, i.axes).split() for i in required}
    shapes = {n: tuple(structure.sizes[axis] for axis in letters) for n, letters in axes.items()}
    own: Mapping[str, Any] = {}
    if structure.regime:
        tensors = {n: shapes[n] for n in operator.tensors if n in shapes}
        own = operator.regimes[structure.regime](random, tensors, FORMATS[dtype])
    for item in required:
        shape = shapes[item.name]
        if isinstance(item, Size):
            (arguments[item.name],) = shape
        elif item.name in own:
            arguments[item.name] = np.ascontiguousarray(rounded(np.asarray(own[item.name]), dtype))
        elif isinstance(item, Integers):
            counted = np.arange(shape[0], dtype=np.int64).reshape(-1, *(1,) * (len(shape) - 1))
            arguments[item.name] = np.ascontiguousarray(np.broadcast_to(counted, shape))
        else:
            values = random.standard_normal(shape, dtype=np.float32)
            if isinstance(item, Tensor) and item.complex:
                values = values + 1j * random.standard_normal(shape, dtype=np.float32)
            arguments[item.name] = rounded(values, dtype)
    if not operator.tensors:
        arguments["dtype"] = dtype
    for parameter in operator.parameters:
        arguments[parameter.name] = own.get(parameter.name, parameter.default)
    return Case(dtype, arguments, "ordinary", seed)


def work_of(operator: Operator, name: str, dtype: str, *, backward: bool) -> Work:
    """The least work of that case."""
    assert operator.work is not None  # the contract refuses timed cases without it
    structure = operator.timed[name]
    itemsize = DTYPES[dtype].itemsize
    return operator.work(**structure.sizes, **structure.keywords, itemsize=itemsize, backward=backward)
