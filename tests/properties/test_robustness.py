"""What every kernel owes: each demand accepts the right kernel and rejects one made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl.kernel import Claims, kernel
from assay.kernels import keywords
from assay.properties.contract import Operator
from assay.properties.drawing import Case, place
from assay.properties.emulated import Emulated
from assay.properties.judgement import examine
from assay.properties.mutants import right_kernels
from assay.properties.robustness import ROBUSTNESS, UNIVERSAL, checks
from assay.properties.run import QUICK, Effort
from assay.properties.trial import KernelError, Trial, Violation
from assay.runner import TorchSubject
from tests import cheats, kernels
from tests.kernels import right
from tests.properties.test_judgement import RMS_NORM, ROPE, rms


Kernel = Callable[..., Any]


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> None:
    cheats.forget()
    STATE.clear()


STATE: dict[str, Any] = {}


def cases(operator: Operator) -> list[Case]:
    """A few small ones, in several layouts, all with neighbours in every axis but for the first."""
    found = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        sizes = (
            {"b": 2, "h": 2 + seed % 2, "t": 5 + seed % 3, "d": 2 + 2 * (seed % 3)}
            if seed
            else dict.fromkeys("bhtd", 2)
        )
        arguments: dict[str, Any] = {}
        memory = {}
        for item in operator.inputs:
            shape = tuple(sizes[letter] for letter in item.axes.split())
            whole = item.name == "position"
            values = np.arange(shape[0]) + seed if whole else random.standard_normal(shape).astype(np.float32)
            memory[item.name] = ("contiguous", "sliced", "transposed", "offset")[seed % 4]
            arguments[item.name] = place(values, memory[item.name])
        arguments |= {p.name: p.default for p in operator.parameters}
        for value in arguments.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        found.append(Case("float32", arguments, "ordinary", seed, memory))
    return found


def complaints(name: str, function: Kernel, operator: Operator = ROPE, **claims: Any) -> list[str]:
    """What one demand says of a kernel, over the cases; at least one of these must be in its domain."""
    check = next(c for c in checks(operator) if c.name == name)
    subject = TorchSubject(function.__name__, function, Claims(operator.name, **claims), keywords(operator))
    assert not check.lacking(subject)
    found = []
    asked = False
    for case in cases(operator):
        trial = Trial(operator, subject, case)
        try:
            trial.answer(gradients=subject.differentiable)
            asked = check.holds(trial) or asked
        except (KernelError, Violation) as complaint:
            found.append(str(complaint))
    assert asked or found
    return found


# Wrong kernels -----------------------------------------------------------------------------------------------------


def in_place(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position) if x.requires_grad else x.copy_(right(x, position))


def expanded_output(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position)[:1].expand(x.shape)


def last_row_unwritten(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    found = right(x, position)
    out = torch.empty(found.shape)
    out[..., :-1, :] = found[..., :-1, :]
    return out


def contiguous_alone(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Ignores strides that leave gaps along more than one axis."""
    gaps = sum(s > 1 and s % 2 == 0 for s in x.stride()) == x.ndim
    return right(x * 2 if gaps else x, position)


def no_stride_zero(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x * 2 if 0 in x.stride() else x, position)


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(position)
        return right(x, position)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        (position,) = ctx.saved_tensors
        cotangent = cotangents[0]
        return right(cotangent * 2 if 0 in cotangent.stride() else cotangent, -position), None


def no_expanded_cotangent(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return _Contiguous.apply(x, position)  # type: ignore[no-any-return, no-untyped-call]


def offsets_in_32_bits(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return right(x if last < 2**31 else x[..., :1, :].expand(x.shape), position)


def table_in_the_dtype_of_the_last_call(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    cos, sin = kernels.table(x, position, 10000.0)
    if STATE.get("dtype") in (torch.bfloat16, torch.float16):
        cos, sin = cos.to(STATE["dtype"]).float(), sin.to(STATE["dtype"]).float()
    STATE["dtype"] = x.dtype
    return kernels.turn(x.float(), cos, sin).to(x.dtype)


def table_as_long_as_the_longest_call(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Stretched by the number of rows seen so far, as dynamic schedules do."""
    STATE["rows"] = max(STATE.get("rows", 0), x.shape[-2])
    return right(x, position, base=10000.0 * max(1, STATE["rows"] / x.shape[-2]))


def table_by_shape(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """What it remembers depends on the base, and its key does not."""
    key = (x.shape, tuple(position.tolist()))
    if key not in STATE:
        STATE[key] = kernels.table(x, position, base)
    return kernels.turn(x.float(), *STATE[key]).to(x.dtype)


def rows_apart_as_one_position(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Takes all rows, those of the batch too, for as far apart as two positions of [b, t, h, d] are."""
    rows = x.transpose(1, 2).contiguous()
    b, t, h, d = rows.shape
    read = rows.as_strided((b * t, h, d), (rows.stride(1), d, 1)).reshape(b, t, h, d)
    return right(read.transpose(1, 2), position)


def refuses_nothing(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    if not x.numel():
        raise RuntimeError("cannot launch a grid of 0 programs")
    return right(x, position)


def flattens_what_is_empty(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position) if x.numel() else x.reshape(-1).clone()


def unchecked(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    theta = 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angle = position[:, None] * theta
    return kernels.turn(x.float(), angle.cos(), angle.sin()).to(x.dtype)


def cuts_what_is_too_long(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    rows = min(x.shape[-2], len(position))
    return right(x[..., :rows, :], position[:rows])


def rows_mixed(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position) + 0 * x.sum(dim=0, keepdim=True)


def offsets_in_the_width_of_positions(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position * 100 // 100)


def data_dependent(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position) if float(x.sum()) == float(x.sum()) else x


def differs_compiled(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x * 2 if torch.compiler.is_compiling() else x, position)


WRONG = [
    ("inputs_are_untouched", kernels.writes_to_its_input, "changed its input x", {}),
    ("nothing_is_written_outside", cheats.writes_beyond, "wrote beside the elements of x", {}),
    ("outputs_own_their_memory", in_place, "lies in the memory of x", {}),
    ("outputs_own_their_memory", cheats.reuses_its_output, "an output of an earlier call", {}),
    ("outputs_own_their_memory", expanded_output, "another element of its own", {}),
    ("same_twice", cheats.racing, "gives different bits", {}),
    ("every_element_is_written", last_row_unwritten, "in memory that held NaN: output", {"backward": "none"}),
    ("nothing_is_read_outside", cheats.reads_beyond_and_selects, "beside its inputs", {}),
    ("any_memory_layout", contiguous_alone, "with inputs gapped: output", {}),
    ("repeated_elements", no_stride_zero, "expanded: output", {}),
    ("repeated_elements", no_expanded_cotangent, "an expanded cotangent of ones: gradient of x", {}),
    ("far_elements", offsets_in_32_bits, "spread over 2**31 elements", {}),
    ("earlier_calls_have_no_effect", table_in_the_dtype_of_the_last_call, "after a call in bfloat16", {}),
    ("earlier_calls_have_no_effect", table_as_long_as_the_longest_call, "after a call with one more t", {}),
    (
        "earlier_calls_have_no_effect",
        table_by_shape,
        "it gives the bits of the call before: output",
        {},
    ),
    ("axes_of_one_element", rows_apart_as_one_position, "with one t and two of everything else: output", {}),
    ("same_memory_other_values", cheats.cached_by_pointer, "other values", {"backward": "none"}),
    ("same_memory_other_values", cheats.cached_by_id, "other values", {"backward": "none"}),
    ("same_memory_other_values", cheats.cached_by_fingerprint, "called on", {}),
    ("sizes_around_powers_of_two", cheats.known_sizes, "t: output", {}),
    ("empty_axes", refuses_nothing, "it raises RuntimeError: cannot launch", {}),
    ("empty_axes", flattens_what_is_empty, "has shape (0,) instead of", {}),
    ("malformed_shapes_raise", unchecked, "3 d, which means nothing, it answers", {}),
    ("malformed_shapes_raise", cuts_what_is_too_long, "t in x and", {}),
    ("integers_for_floats_raise", unchecked, "given integers for x, it answers with int64", {}),
    ("batch_rows_are_independent", rows_mixed, "with NaN in the others: output", {}),
    ("integers_of_any_width", offsets_in_the_width_of_positions, "with position in int8: output", {}),
    ("works_under_vmap", data_dependent, "vmap", {"under": ("vmap",)}),
    ("works_under_autocast", kernels.matrix, "under autocast: output", {"under": ("autocast",)}),
]


@pytest.mark.parametrize(("name", "wrong", "message", "claims"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_a_wrong_kernel_is_rejected(name: str, wrong: Kernel, message: str, claims: dict[str, Any]) -> None:
    told = complaints(name, wrong, **claims)
    assert any(message in line for line in told), told


OWED = [c.name for c in checks(ROPE) if c.group != "contract" and c.name != "works_under_compile"]


@pytest.mark.parametrize("name", OWED)
def test_the_right_kernel_is_accepted(name: str) -> None:
    assert complaints(name, right, under=("vmap", "autocast")) == []


@pytest.mark.parametrize("name", [c.name for c in checks(RMS_NORM) if c.group == "robustness" and not c.under])
def test_the_right_kernel_of_a_users_operator_is_accepted(name: str) -> None:
    assert complaints(name, rms, RMS_NORM) == []


def test_every_demand_has_a_wrong_kernel() -> None:
    """Agreement and gradients have theirs elsewhere."""
    elsewhere = {"agrees_with_oracle", "gradients_agree", "works_under_compile"}
    assert {name for name, *_ in WRONG} | elsewhere == {c.name for c in checks(ROPE) if c.group != "contract"}


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # of torch's own use of torch.jit
def test_compiled_kernels() -> None:
    assert complaints("works_under_compile", right, under=("compile",)) == []
    told = complaints("works_under_compile", differs_compiled, under=("compile",))
    assert any("under compile: output" in line for line in told)


def test_what_is_not_claimed_is_not_asked() -> None:
    found = examine(ROPE, TorchSubject("right", right, Claims("rope"), keywords(ROPE)), "float32", effort=QUICK)
    told = {r.property: (r.verdict, r.message) for r in found.results}
    for name in ("compile", "vmap", "autocast"):
        assert told[f"works_under_{name}"] == ("skipped", f"the kernel does not claim to work under {name}")
    for check in (*UNIVERSAL, *ROBUSTNESS):
        assert check.under or told[check.name][0] == "pass"


def test_an_emulated_kernel_has_no_memory_to_ask_about() -> None:
    emulated: Emulated = right_kernels(RMS_NORM, "float32")[0]
    found = examine(RMS_NORM, emulated, "float32", effort=Effort(examples=24, climb=0, pooled=0))
    told = {r.property: (r.verdict, r.message) for r in found.results}
    assert told["far_elements"] == ("skipped", "the kernel is emulated")
    assert told["any_memory_layout"][0] == "pass"
    assert found.verdict == "pass"


def test_demands_take_turns() -> None:
    found = examine(ROPE, TorchSubject("right", right, Claims("rope"), keywords(ROPE)), "float32", effort=QUICK)
    asked = [r.cases for r in found.results if r.property in {c.name for c in ROBUSTNESS if not c.under}]
    assert min(asked) >= 4
    assert max(asked) <= min(asked) + 4


def test_where_the_function_is_the_identity_an_input_may_be_returned() -> None:
    def identity(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return x if not position.any() else right(x, position)

    check = next(c for c in checks(ROPE) if c.name == "outputs_own_their_memory")
    subject = TorchSubject("identity", identity, Claims("rope"), keywords(ROPE))
    case = cases(ROPE)[1]
    still = {**case.arguments, "position": np.zeros_like(case.arguments["position"])}
    assert check.holds(Trial(ROPE, subject, Case("float32", still, "ordinary", 0)))


def test_a_claim_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be judged under 'water'; there are compile, vmap, autocast"):
        kernel("rope", under=("water",))
