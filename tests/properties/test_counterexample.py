"""Counterexamples as data: bit for bit there and back, and what was not written so is refused in one line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from assay.properties.counterexample import (
    STORED,
    VERSION,
    Counterexample,
    Unreadable,
    described,
    digest,
    restored,
)
from assay.properties.diagnosis import Finding
from assay.properties.drawing import DTYPES, MEMORY, Case, Values, place
from assay.properties.trial import Miss


def made(case: Case, **changes: Any) -> Counterexample:
    out = Counterexample(
        operator="rope",
        kernel="rope=mine.py:rope",
        folder="../..",
        property="agrees_with_oracle",
        case=case,
        form="table",
        precision=None,
        conventions={"layout": "interleaved"},
        device="cpu",
        verdict="fail",
        message="output[0] is nan",
        miss=Miss("output", (0, 3), 1.5, math.nan, math.inf, 2, 8),
        diagnosis=(Finding("slip", "position_off_by_one", "the slip", None, math.inf),),
        versions={"numpy": np.__version__},
    )
    return replace(out, **changes)


def case(values: Values | None = None, memory: str = "contiguous", **arguments: Any) -> Case:
    x = np.arange(6, dtype=np.float32).reshape(2, 3) if values is None else values
    dtype = str(x.dtype) if str(x.dtype) in DTYPES else "float32"
    return Case(dtype, {"x": place(x, memory), "position": np.arange(2), **arguments}, "ordinary", 7, {"x": memory})


def there_and_back(counterexample: Counterexample) -> Counterexample:
    content, arrays = described(counterexample)
    return restored(json.loads(json.dumps(content, allow_nan=False)), arrays)


def same(a: Values, b: Values) -> bool:
    return (a.dtype, a.shape, a.strides, a.tobytes()) == (b.dtype, b.shape, b.strides, b.tobytes())


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def bits(draw: Callable[[Any], Any]) -> Values:
    """Arrays of any dtype and any bits: NaN payloads, negative zeros, subnormal numbers, nothing at all."""
    true, _ = STORED[draw(st.sampled_from(sorted(STORED)))]
    shape = draw(SHAPES)
    if true.kind == "b":
        return np.asarray(draw(hnp.arrays(np.bool_, shape)))
    raw = draw(st.binary(min_size=math.prod(shape) * true.itemsize, max_size=math.prod(shape) * true.itemsize))
    return np.frombuffer(raw, dtype=true).reshape(shape)


@given(bits(), st.sampled_from(MEMORY))
def test_arrays_come_back_bit_for_bit_and_lie_as_they_lay(values: Values, memory: str) -> None:
    before = made(case(values, memory))
    after = there_and_back(before)
    assert same(before.case.arguments["x"], after.case.arguments["x"])
    assert same(before.case.arguments["position"], after.case.arguments["position"])
    assert after.case.memory == before.case.memory
    assert not after.case.arguments["x"].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory", dict.fromkeys(MEMORY))
def test_nan_payloads_and_negative_zero(dtype: str, memory: str) -> None:
    values = np.zeros((2, 3), DTYPES[dtype])
    raw = values.view(f"u{values.itemsize}")
    raw[0, 0] = np.array(-0.0, DTYPES[dtype]).view(raw.dtype)
    raw[0, 1] = np.array(np.nan, DTYPES[dtype]).view(raw.dtype) | 5
    raw[1, 2] = raw[0, 0] | raw[0, 1] | 2
    assert same(place(values, memory), there_and_back(made(case(values, memory))).case.arguments["x"])


def test_bfloat16_is_stored_as_its_bits() -> None:
    content, arrays = described(made(case(np.array([1.5, -2], ml_dtypes.bfloat16))))
    assert arrays["x"].dtype == np.uint16
    assert content["arguments"]["x"]["array"] == "bfloat16"


def test_everything_else_comes_back_too() -> None:
    keywords = {
        "base": 1e4,
        "low": -math.inf,
        "nothing": None,
        "causal": True,
        "sections": (1, (2, 3)),
        "layout": "half",
    }
    before = made(case(**keywords, count=np.int64(3)))
    after = there_and_back(before)
    assert {k: after.case.arguments[k] for k in keywords} == keywords
    assert after.case.arguments["count"] == 3
    assert isinstance(after.case.arguments["causal"], bool)
    assert isinstance(after.case.arguments["base"], float)
    assert (after.case.seed, after.case.regime, after.case.dtype) == (7, "ordinary", "float32")
    assert after.miss is not None
    assert math.isnan(after.miss.got)
    assert after.miss.bound == math.inf
    assert after.diagnosis[0].sigma == math.inf
    for name in ("operator", "kernel", "folder", "property", "form", "precision", "conventions", "device", "versions"):
        assert getattr(after, name) == getattr(before, name)


def test_the_digest_is_of_the_question_and_not_of_the_answer() -> None:
    one = made(case())
    assert digest(one) == digest(made(case(), message="other", miss=None, diagnosis=(), versions={}))
    others = [
        made(case(np.ones((2, 3), np.float32))),
        made(case(memory="sliced")),
        made(case(base=1.0)),
        made(case(), form=None),
        made(case(), property="same_twice"),
        made(case(), kernel="rope=other.py:rope"),
    ]
    assert len({digest(c) for c in (one, *others)}) == 7


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, np.array([object()], dtype=object)])
def test_what_cannot_be_stored_is_said(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        described(made(case(given=value)))


# Refused ---------------------------------------------------------------------------------------------------------


def changed(path: str, value: Any = None) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Set, or delete if the value is None, what stands at a path."""
    *parents, last = path.split(".")

    def change(content: dict[str, Any], arrays: dict[str, Any]) -> None:
        for key in parents:
            content = content[key]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


def array(name: str, values: Any = None) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(content: dict[str, Any], arrays: dict[str, Any]) -> None:
        if values is None:
            del arrays[name]
        else:
            arrays[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("format", "something else"), "it is not a counterexample of assay"),
        (changed("version", VERSION + 1), "a newer assay wrote it"),
        (changed("version", 0), "there is no version 0"),
        (changed("version", "1"), "'version' must be an integer, not \"1\""),
        (changed("version", True), "'version' must be an integer, not true"),
        (changed("property"), "'property' is missing"),
        (changed("kernel", 3), "'kernel' must be a text, not 3"),
        (changed("claims", []), "'claims' must be an object"),
        (changed("claims.conventions", {"layout": 1}), "'layout' must be a text"),
        (changed("dtype", "float7"), "there is no dtype 'float7'"),
        (changed("seed", -1), "'seed' must not be negative"),
        (changed("found.miss.index", [0.5]), "'index' must be a list of integers"),
        (changed("found.miss.exact", "much"), "'exact' must be a number"),
        (changed("diagnosis", ["x"]), "'diagnosis' must be a list of objects"),
        (changed("arguments.x.memory", "upside down"), "lies in memory as 'upside down', which is unknown"),
        (changed("arguments.x.array", "object"), "'x' has the unknown dtype 'object'"),
        (changed("arguments.x.shape", [3, 2]), "the array 'x' has shape [2, 3] instead of [3, 2]"),
        (changed("arguments.base", {"call": "os.system"}), "'base' must not be"),
        (changed("arguments.base", 2.0), "its digest does not fit its content"),
        (changed("seed", 8), "its digest does not fit its content"),
        (array("x"), "the array 'x' is missing"),
        (array("x", np.zeros((2, 3))), "the array 'x' must be stored as float32, not float64"),
        (array("x", b"bytes"), "the array 'x' must be stored as float32, not bytes"),
        (array("x", np.zeros(6, np.float32)), "has shape [6] instead of [2, 3]"),
        (array("x", np.zeros((2, 3), np.float32)), "its digest does not fit its content"),
    ],
)
def test_what_was_changed_is_refused_in_one_line(change: Callable[..., None], message: str) -> None:
    content, arrays = described(made(case(base=1.0)))
    content = copy.deepcopy(content)
    change(content, arrays)
    with pytest.raises(Unreadable) as error:
        restored(content, arrays)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, [], 3, "text", {}])
def test_other_json_is_refused(content: Any) -> None:
    with pytest.raises(Unreadable, match="not a counterexample"):
        restored(content, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.data(), JSON)
def test_no_content_raises_anything_else(data: st.DataObject, value: Any) -> None:
    content, arrays = described(made(case(base=1.0)))
    content = copy.deepcopy(content)
    inside = [content, content["claims"], content["found"], content["found"]["miss"], content["arguments"]["x"]]
    spot = data.draw(st.sampled_from(inside))
    spot[data.draw(st.sampled_from(sorted(spot)))] = value
    with suppress(Unreadable):
        restored(content, arrays)
