"""The kill matrix: every mutant is rejected or its survival explained, and no right kernel is rejected."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from assay.properties import OPERATORS
from assay.properties.contract import Operator, Real, Tensor
from assay.properties.drawing import place
from assay.properties.emulated import contiguous_strides, misread, strides_of
from assay.properties.judgement import examine
from assay.properties.matrix import DTYPES, OURS, Bench, Outcome, dtypes, idle, kill, matrix, scores, unused
from assay.properties.mutants import mutants, right, right_kernels
from assay.properties.others import RULES
from assay.properties.run import QUICK, Effort
from assay.reference.arithmetic.array import store
from tests.properties.test_judgement import RMS_NORM


ROPE = OPERATORS["rope"]


def attention(q: Any, k: Any, v: Any, *, scale: Any) -> Any:
    """Softmax attention of one head, and the logarithm of its normaliser."""
    xp = q.__array_namespace__()
    logits = scale * (q @ k.mT)
    top = xp.max(logits, axis=-1, keepdims=True)
    weights = xp.exp(logits - top)
    total = xp.sum(weights, axis=-1, keepdims=True)
    return (store(weights, "weights") @ v) / total, (top + xp.log(total))[..., 0]


ATTENTION = Operator(
    "attention",
    definition=attention,
    inputs=(Tensor("q", "b t d"), Tensor("k", "b s d"), Tensor("v", "b s e")),
    parameters=(Real("scale", default=0.3, low=-1, high=1),),
)

CONTRACTS = {o.name: o for o in (*OPERATORS.values(), RMS_NORM, ATTENTION)}
SLOW = (
    "performer_attention",
    "clip_loss",
    "siglip_loss",
    "selective_scan",
    "discretize",
    "hippo_matrices",
    "ssm_kernel",
    "ssm_scan",
)
"""Many of their mutants round otherwise, survive, and so meet every case: half precision is left to the nightly run."""
SLOWEST = ("hippo_project", "s4_kernel")
"""Every step of a case may be an exponential or a power of a matrix, with its bound: all is left to the nightly run."""


def marks(name: str, dtype: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.nightly] if name in SLOWEST or (dtype == "bfloat16" and name in SLOW) else []


@functools.cache
def bench(name: str, dtype: str) -> Bench:
    return Bench(CONTRACTS[name], dtype)


@functools.cache
def outcomes(name: str, dtype: str) -> tuple[Outcome, ...]:
    return tuple(matrix(bench(name, dtype)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=marks(name, dtype))
        for name, operator in CONTRACTS.items()
        for dtype in dtypes(operator, ("float32", "bfloat16"))
    ],
)
def test_every_mutant_is_killed_or_its_survival_explained(name: str, dtype: str) -> None:
    found = outcomes(name, dtype)
    assert len(found) >= (20 if CONTRACTS[name].random else 80)  # of what draws there are mutants by hand alone
    assert {o.mutant: o.message for o in found if o.fate == "survived"} == {}
    # Where a text computes whole numbers, many a step may be rounded otherwise and nothing changes.
    assert sum(o.fate == "killed" for o in found) > 0.8 * sum(o.fate != "equivalent" for o in found)


def test_the_first_kill_comes_early() -> None:
    """Half of the mutants fall within two cases: a count, since seconds belong to the machine."""
    killed = [o for o in outcomes("rope", "float32") if o.fate == "killed"]
    assert np.median([o.cases for o in killed]) <= 2


def test_only_roundings_parameters_and_lost_terms_may_be_explained_by_the_machine() -> None:
    for name, operator in CONTRACTS.items():
        if name in SLOWEST:
            continue
        by_hand = set(operator.survivors.values())
        for o in outcomes(name, "float32" if name in SLOW or operator.complex else "bfloat16"):
            assert o.fate == "killed" or o.kind in ("step", "parameter", "gradient") or o.message in by_hand


def test_every_explanation_by_hand_is_used() -> None:
    found = [o for d in DTYPES for o in outcomes("rope", d)]
    assert unused(ROPE, found) == []
    wrong = replace(ROPE, survivors={"no such mutant *": "there is none"})
    assert unused(wrong, found) == ["no such mutant *"]


@pytest.mark.parametrize("name", ["rms_norm", "attention"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_emulated_kernels_are_right(name: str, dtype: str) -> None:
    operator = CONTRACTS[name]
    for kernel in right_kernels(operator, dtype):
        found = examine(operator, kernel, dtype, effort=QUICK)
        assert {r.property: r.message for r in found.results if r.verdict == "fail"} == {}


@pytest.mark.parametrize("kind", ["convention", "slip", "parameter", "step", "index", "memory", "write", "gradient"])
def test_a_kill_on_shared_cases_is_one_that_the_judge_repeats(kind: str) -> None:
    """The judge draws for itself, without stopping: the same demand is broken."""
    own = bench("rope", "float32")
    outcome = next(o for o in outcomes("rope", "float32") if o.kind == kind and o.fate == "killed")
    mutant = next(m for m in own.mutants if m.name == outcome.mutant)
    found = examine(ROPE, mutant.kernel(), "float32", effort=Effort(shrink_seconds=0.1, climb=0))
    assert outcome.by[0] in {r.property for r in found.results if r.verdict in ("fail", "error")}


def test_mutants_are_derived_from_any_contract() -> None:
    names = {m.name for m in mutants(ATTENTION, "float32")}
    expected = {
        "scale ignored",
        "scale shifted by 0.001",
        "exp 1 of attention in bfloat16",
        "sum 1 of attention truncated",
        "k b and s exchanged",
        "v e rolled",
        "the last row of axis 1 of output 0 stale",
        "the last block of 64 of axis 1 of output 1 dropped",
        "gradient of q is that of v",
        "cotangent 1 ignored",
        "cotangent taken as contiguous",
        "zeros",
    }
    assert expected <= names
    assert any(name.startswith("term ") for name in names)


def test_an_output_that_not_every_case_asks_for_has_mutants_too() -> None:
    names = {m.name for m in bench("softmax_attention", "float32").mutants}
    assert {"the last row of axis 2 of output 1 stale", "cotangent 1 ignored"} <= names


def test_a_mistake_that_no_case_shows_is_not_called_equivalent() -> None:
    def nothing_to_see(kernel: Any, arguments: Mapping[str, Any], cotangents: Any, memory: Any) -> Any:
        """is right"""
        return kernel.answer(arguments, cotangents)

    operator = replace(RMS_NORM, mutants={"right": nothing_to_see})
    own = Bench(operator, "float32")
    mutant = next(m for m in own.mutants if m.name == "right")
    outcome = kill(own, mutant)
    assert (outcome.fate, outcome.text) == ("survived", "is right")
    assert "no case shows it" in outcome.message
    told = Bench(replace(operator, survivors={"right *": "it is the right kernel"}), "float32")
    assert kill(told, mutant).fate == "explained"


def test_a_shift_is_legal_up_to_what_one_rounding_causes() -> None:
    """A norm's scale is moved by a rounding of the output, u = 2**-8, and by little more."""
    legal = bench("rope", "bfloat16").legal_shifts
    assert 2**-8 < legal["attention_factor"] < 2**-7
    assert legal["base"] < 1e-6


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "sliced", "offset"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int64)])
def test_a_buffer_is_read_with_the_strides_given(memory: str, dtype: np.dtype[Any]) -> None:
    values = place(np.arange(12).reshape(3, 4).astype(dtype), memory)
    np.testing.assert_array_equal(misread(values, strides_of(values)), values)
    taken = misread(values, contiguous_strides(values.shape))
    assert taken.shape == values.shape
    assert np.array_equal(taken, values) == (memory in ("contiguous", "offset"))


def test_the_rules_of_others_are_scored_on_the_same_mutants() -> None:
    found = scores(bench("rms_norm", "float32"), outcomes("rms_norm", "float32"))
    assert [s.rule for s in found] == [OURS, *RULES]
    ours, *others = found
    assert ours.false_alarms == 0
    assert all(s.mutants == ours.mutants and s.right == ours.right for s in others)
    assert all(s.killed + len(s.missed) == s.mutants for s in found)
    # On these cases every rule that kills as many rejects right kernels too.
    assert all(s.killed < ours.killed or s.false_alarms for s in others)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_accepts_the_truth_and_rejects_what_is_far_off(rule: str) -> None:
    exact = np.random.default_rng(0).standard_normal((4, 5)).astype(np.longdouble)
    got = exact.astype(np.float32)
    assert RULES[rule](got, exact, got, "float32")
    assert not RULES[rule](np.zeros_like(got), exact, got, "float32")
    assert not RULES[rule](got * np.float32(np.nan), exact, got, "float32")


def test_the_flash_attention_rule_is_relative_to_the_naive_kernel() -> None:
    rule = RULES["2 x naive + 1e-5 (flash-attention)"]
    exact = np.ones(4, np.longdouble)
    got, naive = (np.float32([1, 1, 1, 1 + off]) for off in (2e-3, 1.1e-3))
    assert rule(got, exact, naive, "float32")
    assert not rule(got, exact, np.float32([1, 1, 1, 1 + 9e-4]), "float32")


def test_the_right_kernel_claims_its_first_form() -> None:
    assert right(ROPE, "float32").form == "table"
    assert right(RMS_NORM, "float32").form == "definition"


@pytest.mark.nightly
@pytest.mark.parametrize("name", CONTRACTS)
def test_every_demand_kills_a_mutant(name: str) -> None:
    own = CONTRACTS[name]
    found = [o for dtype in DTYPES for o in matrix(bench(name, dtype), full=True)]
    assert idle(own, found) == []
    assert [o.mutant for o in found if o.fate == "survived"] == []
