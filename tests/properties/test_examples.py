"""Which known counterexamples a kernel is tried on, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings

from assay.examples import read, written
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties import OPERATORS
from assay.properties.counterexample import Counterexample, Unreadable
from assay.properties.drawing import Case, cases
from assay.properties.examples import belongs, suited
from assay.properties.judgement import examine
from assay.properties.mutants import Mutant, right
from assay.properties.run import QUICK, RECALLED, Effort
from assay.properties.trial import GivenUp, KernelError
from assay.runner import TorchSubject
from tests import kernels
from tests.properties.test_robustness import unchecked


ROPE = OPERATORS["rope"]
FEW = Effort(examples=8, climb=0, shrink_seconds=0, robustness=0, shares=0, pooled=0)
DRAWN = sorted(name for name, operator in OPERATORS.items() if not operator.random)


def drawn(name: str, supports: Any = lambda keyword: True, number: int = 12) -> list[Case]:
    """Cases of an operator, as they are drawn for a kernel with some keywords."""
    operator = OPERATORS[name]
    conventions = {n: v if supports(n) else v[-1:] for n, v in operator.conventions.items()}
    found: list[Case] = []

    def keep(case: Case) -> None:
        found.append(case)

    run = settings(max_examples=number, database=None, phases=(Phase.generate,), backend="assay", deadline=None)
    seed(1)(run(given(cases(operator, "float32", supports, conventions))(keep)))()
    return found


def one(property: str, case: Case) -> Counterexample:
    return read(written("rope", "rope=mine:rope", property, case))


@pytest.mark.parametrize("name", DRAWN)
def test_a_case_is_the_same_after_it_was_kept(name: str) -> None:
    operator = OPERATORS[name]
    for case in drawn(name):
        kept = read(written(name, f"{name}=mine:f", "agrees_with_oracle", case)).case
        again = suited(operator, kept, lambda keyword: True, operator.conventions)
        assert again is not None
        assert [*again.arguments] == [*case.arguments]
        assert written(name, f"{name}=mine:f", "agrees_with_oracle", again) == written(
            name, f"{name}=mine:f", "agrees_with_oracle", case
        )
        assert (again.dtype, again.regime, again.seed, again.memory) == (
            case.dtype,
            case.regime,
            case.seed,
            case.memory,
        )
        for key, value in case.arguments.items():
            got = again.arguments[key]
            if isinstance(value, np.ndarray):
                assert (got.dtype, got.strides, got.tobytes()) == (value.dtype, value.strides, value.tobytes())
            else:
                assert got == value


@pytest.mark.parametrize("name", DRAWN)
def test_a_kernel_of_few_keywords_gets_its_own_cases_and_no_others(name: str) -> None:
    """One that has no keyword at all, under the last of the conventions."""
    operator = OPERATORS[name]

    def nothing(keyword: str) -> bool:
        return False

    conventions = {n: v[-1:] for n, v in operator.conventions.items()}
    for case in drawn(name, nothing):
        again = suited(operator, case, nothing, conventions)
        assert again is not None
        assert {*again.arguments} == {*case.arguments}
    shapes = {frozenset(case.arguments) for case in drawn(name, nothing)}
    for case in drawn(name):
        again = suited(operator, case, nothing, conventions)
        assert again is None or {*again.arguments} in shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": None}, "position of the case is of NoneType"),
        ({"x": np.zeros((1, 1, 1, 2))}, "x of the case is of float64, in float32"),
        ({"x": 3.0}, "x of the case is of float"),
        ({"tempo": 1.0}, "rope takes no tempo"),
    ],
)
def test_what_is_no_case_of_the_operator(changes: dict[str, Any], message: str) -> None:
    (case, *_) = drawn("rope")
    with pytest.raises(Unreadable, match=message):
        belongs(ROPE, replace(case, arguments={**case.arguments, **changes}))


def rare() -> Any:
    """A kernel that is wrong in hardly any case: where x is of one size that nobody draws twice."""
    base = right(ROPE, "float32")
    return Mutant(
        "it", "write", "", base, {"write": lambda y, memory, arguments: y * 2 if y.shape == (2, 3, 7, 12) else y}
    ).kernel()


def example(seed: int = 3) -> Case:
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, 3, 7, 12)).astype(np.float32)
    arguments: dict[str, Any] = {"x": x, "position": np.arange(7), "base": 10000.0}
    return Case("float32", arguments, "ordinary", seed, {"x": "contiguous", "position": "contiguous"})


def test_a_known_counterexample_is_tried_first() -> None:
    without = examine(ROPE, rare(), "float32", effort=FEW, only=("agrees_with_oracle",))
    assert without.results[0].case is None
    known = [one("agrees_with_oracle", example())]
    (result,) = examine(ROPE, rare(), "float32", effort=FEW, only=("agrees_with_oracle",), examples=known).results
    assert result.verdict == "fail"
    assert result.case is not None
    assert result.case.arguments["x"].shape == (2, 3, 7, 12)
    assert result.counterexample.endswith(RECALLED)
    assert result.cases == without.results[0].cases + 1


def test_what_is_drawn_does_not_depend_on_what_is_known() -> None:
    """A wrong kernel fails as it would have failed, but for a known case that is smaller."""
    kernel = Mutant("it", "write", "", right(ROPE, "float32"), {"write": lambda y, *_: y * 2}).kernel
    seen: list[list[bytes]] = []
    for known in ([], [one("agrees_with_oracle", example()), one("empty_axes", example(4))]):
        calls: list[bytes] = []

        wrong = kernel()

        def noted(y: Any, memory: Any, arguments: Any, write: Any = wrong.write, calls: Any = calls) -> Any:
            calls.append(arguments["x"].tobytes())
            return write(y, memory, arguments)

        wrong.write = noted
        found = examine(ROPE, wrong, "float32", effort=FEW, examples=known)
        assert found.results[0].verdict == "fail"
        assert RECALLED not in found.results[0].counterexample
        seen.append(calls)
    assert seen[1][-len(seen[0]) :] == seen[0]
    assert len(seen[1]) > len(seen[0])


def test_the_demand_that_was_broken_is_tried() -> None:
    subject = TorchSubject("unchecked", unchecked, Claims("rope"), keywords(ROPE))
    few = replace(QUICK, examples=12, robustness=0, pooled=0, shares=0)
    without = {r.property: r for r in examine(ROPE, subject, "float32", effort=few).results}
    assert without["integers_for_floats_raise"].verdict == "skipped"
    known = [one("integers_for_floats_raise", example())]
    found = {r.property: r for r in examine(ROPE, subject, "float32", effort=few, examples=known).results}
    assert found["integers_for_floats_raise"].verdict == "fail"
    assert found["integers_for_floats_raise"].case is not None
    assert found["agrees_with_oracle"].case is None


def test_a_kernel_of_another_convention_is_not_tried_on_it() -> None:
    subject = TorchSubject("raises", kernels.raises, Claims("rope"), keywords(ROPE))
    case = replace(example(), arguments={**example().arguments, "layout": "interleaved"})
    few = replace(FEW, examples=1)
    (result,) = examine(
        ROPE, subject, "float32", effort=few, only=("agrees_with_oracle",), examples=[one("agrees_with_oracle", case)]
    ).results
    assert RECALLED not in result.counterexample


class Hangs(TorchSubject):
    """On seven positions; then it is not called any more."""

    gone = False

    def __call__(self, arguments: Any, *rest: Any) -> Any:
        if self.gone:
            raise GivenUp("not called again")
        if len(arguments["position"]) == 7:
            self.gone = True
            raise KernelError("the call took long")
        return super().__call__(arguments, *rest)


def test_what_was_not_called_does_not_take_the_place_of_what_failed() -> None:
    """Be it smaller or not."""
    hangs = Hangs("hangs", unchecked, Claims("rope"), keywords(ROPE))
    known = [one("agrees_with_oracle", example())]
    (result,) = examine(ROPE, hangs, "float32", effort=FEW, only=("agrees_with_oracle",), examples=known).results
    assert (result.verdict, result.message) == ("error", "the call took long")
    assert result.case is not None
    assert len(result.case.arguments["position"]) == 7
