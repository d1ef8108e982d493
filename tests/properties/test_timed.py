"""The work that contracts state is that of arrays and products that are really there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from assay.impl.attention import softmax_attention_plain
from assay.kernels import keywords, known_kernels
from assay.properties import OPERATORS
from assay.properties.contract import Operator, Structure, Tensor
from assay.properties.drawing import COMPLEX
from assay.properties.timed import timed_case, work_of
from assay.properties.trial import shape_of
from assay.runner import TorchSubject


CASES = [(operator, case) for operator in OPERATORS.values() for case in operator.timed]
IDS = [f"{operator.name}-{case}" for operator, case in CASES]
DTYPES = ("float32", "bfloat16")
TYPED = [(o, case, dtype) for o, case in CASES for dtype in DTYPES if not o.complex or dtype in COMPLEX]


@pytest.mark.parametrize(("operator", "case", "dtype"), TYPED, ids=lambda x: getattr(x, "name", x))
def test_the_least_bytes_are_those_of_inputs_and_outputs(operator: Operator, case: str, dtype: str) -> None:
    """And of cotangents and gradients, which are as large as outputs and inputs."""
    drawn = timed_case(operator, case, dtype)
    kernel = next(k for k in known_kernels()[0] if k.operator is operator and not k.claims.interpreted)
    answer = TorchSubject(kernel.name, kernel.function, kernel.claims, keywords(operator))(drawn.arguments, None, ())
    inputs = [v for v in drawn.arguments.values() if isinstance(v, np.ndarray)]
    moved = sum(v.nbytes for v in [*inputs, *answer.outputs])
    returned = sum(v.nbytes for v in answer.outputs)
    again = sum(drawn.arguments[n].nbytes for n in operator.tensors if n in drawn.arguments) + returned
    assert work_of(operator, case, dtype, backward=False).bytes == moved
    assert work_of(operator, case, dtype, backward=True).bytes == moved + again


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", ["short", "long"])
def test_the_least_flops_of_attention_are_those_of_its_products(case: str, backward: bool) -> None:
    operator = OPERATORS["softmax_attention"]
    arguments = timed_case(operator, case, "float32").arguments
    q, k, v = (torch.from_numpy(arguments[name]).requires_grad_() for name in "qkv")
    with FlopCounterMode(display=False) as counter:
        out = softmax_attention_plain(q, k, v)
        if backward:
            assert isinstance(out, torch.Tensor)
            out.sum().backward()  # type: ignore[no-untyped-call]
    assert work_of(operator, case, "float32", backward=backward).flops == counter.get_total_flops()


def test_hidden_pairs_cost_no_work() -> None:
    operator = OPERATORS["softmax_attention"]
    t = operator.timed["causal"].sizes["t"]
    causal, full = (work_of(operator, case, "float32", backward=False) for case in ("causal", "short"))
    assert causal.exponentials * 2 * t == full.exponentials * (t + 1)
    assert causal.flops * 2 * t == full.flops * (t + 1)


@pytest.mark.parametrize("order", ["right", "left"])
def test_the_least_flops_of_linear_attention_are_those_of_the_cheaper_order(order: str) -> None:
    operator = OPERATORS["unnormalized_attention"]
    q, k, v = (torch.empty((1, 2, 6, 4), device="meta") for _ in "qkv")
    with FlopCounterMode(display=False) as counter:
        _ = (q @ (k.mT @ v)) if order == "right" else ((q @ k.mT) @ v)
    assert operator.work is not None
    sizes = {"b": 1, "h": 2, "t": 6, "s": 6, "d": 4, "e": 4}
    least = operator.work(**sizes, itemsize=4, backward=False).flops
    assert least <= counter.get_total_flops()
    assert (least == counter.get_total_flops()) == (order == "right")


@pytest.mark.parametrize(("operator", "case"), CASES, ids=IDS)
def test_every_timed_case_is_a_case_of_its_operator(operator: Operator, case: str) -> None:
    drawn = timed_case(operator, case, "float32")
    assert set(operator.timed[case].keywords) <= keywords(operator)
    for item in (i for i in operator.inputs if i.name in drawn.arguments):
        sizes = [operator.timed[case].sizes[axis] for axis in item.axes.split()]
        assert shape_of(item, drawn.arguments) == tuple(sizes)
        if isinstance(item, Tensor):
            assert all(operator.timed[case].sizes[axis] % 2 == 0 for axis in item.even.split())


def test_timed_cases_without_work_are_refused() -> None:
    with pytest.raises(ValueError, match="what is timed needs `work`"):
        Operator("f", lambda x: x, inputs=(Tensor("x", "t"),), timed={"one": Structure(sizes={"t": 1})})
