"""The definition of rope: golden figures recomputed, forms equal, schedules as their papers say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, strategies as st

from assay.reference import rope as reference
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import evaluate


def golden(ball: flint.arb, printed: str) -> bool:
    """Does the certified value round to the printed figure: within half a unit of its last digit?"""
    digits, _, exponent = printed.partition("e")
    places = len(digits.partition(".")[2])
    half = flint.arb(10) ** (int(exponent or 0) - places) / 2
    return bool(abs(ball - flint.arb(printed)) <= half * (1 + flint.arb(2) ** -40))


def frequencies(d: int, **keywords: Any) -> list[flint.arb]:
    ball = Ball(160)
    with ball.context():
        lifted = {k: ball.parameter(v) if isinstance(v, float) else v for k, v in keywords.items()}
        return list(reference.rope_frequencies(d, **lifted).parts[0])


# mathematics: the mean over j of |S_j|, S_j = sum of exp(i s theta_k), k < j, for d = 128 and base 10000.
ABEL = {
    0: "32.5",
    1: "31.5381661427",
    2: "28.9559884736",
    5: "20.8453577784",
    10: "17.9541371371",
    50: "12.6294524883",
    100: "10.2273299485",
    500: "6.18979065338",
    1000: "4.47076103425",
    4096: "4.88279219119",
}


@pytest.mark.parametrize("distance", ABEL)
def test_golden_mean_of_partial_sums(distance: int) -> None:
    theta = frequencies(128, base=10000.0)
    with Ball(160).context():
        real = imaginary = total = flint.arb(0)
        for t in theta:
            real, imaginary = real + (distance * t).cos(), imaginary + (distance * t).sin()
            total += (real * real + imaginary * imaginary).sqrt()
        assert golden(total / 64, ABEL[distance])


@pytest.mark.parametrize("distance", [1, 50, 4096])
@given(seed=st.integers(0, 2**32 - 1))
def test_inner_products_keep_the_bound_of_abel(distance: int, seed: int) -> None:
    """|sum h_j e^(i s theta_j)| <= max |h_(j+1) - h_j| sum |S_j|."""
    theta = np.array([float(t) for t in frequencies(16, base=10000.0)])
    random = np.random.default_rng(seed)
    h = random.standard_normal(8) + 1j * random.standard_normal(8)
    wave = np.exp(1j * distance * theta)
    steps = np.abs(np.diff(np.append(h, 0)))
    assert abs((h * wave).sum()) <= steps.max() * np.abs(np.cumsum(wave)).sum() * (1 + 2.0**-40)


def test_golden_base_of_ntk_aware_scaling() -> None:
    with Ball(160).context():
        base = flint.arb(10000) * flint.arb(8) ** (flint.arb(128) / 126)
        assert golden(base, "82684.62264056")
    plain = frequencies(128, base=10000.0)
    scaled = frequencies(128, base=10000.0, schedule="ntk", factor=8.0)
    with Ball(160).context():
        assert scaled[0] == 1
        assert (plain[-1] / 8).overlaps(scaled[-1])


# mathematics: YaRN's rotations-to-channel map for d = 128, base 10000, original length 4096.
def test_golden_range_of_yarn() -> None:
    with Ball(160).context():
        for rotations, printed in ((32, "20.9445"), (1, "45.0269")):
            f = 128 * (flint.arb(4096) / (2 * flint.arb.pi() * rotations)).log() / (2 * flint.arb(10000).log())
            assert golden(f, printed)
    plain = frequencies(128, base=10000.0)
    yarn = frequencies(128, base=10000.0, schedule="yarn", factor=4.0, original_length=4096.0)
    with Ball(160).context():
        assert all(a.overlaps(b) for a, b in zip(yarn[:21], plain[:21], strict=True))
        assert all(a.overlaps(b / 4) for a, b in zip(yarn[46:], plain[46:], strict=True))
        assert all(b / 4 < a and a < b for a, b in zip(yarn[21:46], plain[21:46], strict=True))


@pytest.mark.parametrize(
    ("factor", "printed"), [(2, "1.0693147"), (4, "1.1386294"), (8, "1.2079442"), (16, "1.2772589"), (32, "1.3465736")]
)
def test_golden_attention_factors_of_yarn(factor: int, printed: str) -> None:
    ball = Ball(160)
    with ball.context():
        value = reference.attention_factor("yarn", factor=ball.parameter(float(factor)))
        assert golden(value.parts[0].item(), printed)


LLAMA3 = {
    28: "3.21144599e-3",
    29: "2.16657076e-3",
    30: "1.37189357e-3",
    31: "8.56751413e-4",
    32: "5.24846161e-4",
    33: "3.12693750e-4",
    34: "1.78507813e-4",
    35: "9.55621235e-5",
    63: "3.06892599e-7",
}


def test_golden_frequencies_of_llama_3() -> None:
    plain = frequencies(128, base=500000.0)
    theta = frequencies(
        128,
        base=500000.0,
        schedule="llama3",
        factor=8.0,
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
        original_length=8192.0,
    )
    with Ball(160).context():
        for j, printed in LLAMA3.items():
            assert golden(theta[j], printed), (j, theta[j])
        unchanged = [j for j in range(64) if theta[j].overlaps(plain[j])]
        divided = [j for j in range(64) if theta[j].overlaps(plain[j] / 8)]
    assert unchanged == list(range(29))
    assert divided == list(range(35, 64))


SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "length": 8192.0, "original_length": 2048.0},
    "yarn": {"factor": 4.0, "original_length": 2048.0},
    "llama3": {
        "factor": 4.0,
        "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0,
        "original_length": 2048.0,
    },
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_lower_frequencies_and_keep_their_order(schedule: str) -> None:
    plain = frequencies(32, base=10000.0)
    theta = frequencies(32, base=10000.0, schedule=schedule, **SCHEDULES[schedule])
    with Ball(160).context():
        assert all(not t > p for t, p in zip(theta, plain, strict=True))
        assert all(b < a for a, b in pairwise(theta))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_factor_of_one_changes_nothing(schedule: str) -> None:
    keywords = {**SCHEDULES[schedule], "factor": 1.0}
    if schedule == "dynamic":
        keywords["length"] = keywords["original_length"]
    plain = frequencies(32, base=10000.0)
    with Ball(160).context():
        theta = frequencies(32, base=10000.0, schedule=schedule, **keywords)
        assert all(a.overlaps(b) for a, b in zip(theta, plain, strict=True))


def test_longrope_divides_by_its_list() -> None:
    plain = frequencies(8, base=10000.0)
    theta = frequencies(8, base=10000.0, schedule="longrope", factors=(1, 2, 3, 4))
    with Ball(160).context():
        assert all((p / k).overlaps(t) for k, p, t in zip((1, 2, 3, 4), plain, theta, strict=True))


def test_longrope_attention_factor() -> None:
    ball = Ball(160)
    with ball.context():
        value = reference.attention_factor(
            "longrope", factor=ball.parameter(32.0), original_length=ball.parameter(4096.0)
        )
        exact = (1 + flint.arb(32).log() / flint.arb(4096).log()).sqrt()
        assert exact.overlaps(value.parts[0].item())


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="plain, linear"):
        reference.rope_frequencies(8, schedule="cubic")


def test_bf16_positions_collide() -> None:
    """Why positions stay integers: 769 distinct bfloat16 values from 0 to 4095, 3073 in float16."""
    import ml_dtypes

    positions = np.arange(4096)
    assert len(np.unique(positions.astype(ml_dtypes.bfloat16).astype(float))) == 769
    assert len(np.unique(positions.astype(np.float16))) == 3073
    first = next(i for i in positions if i != int(positions[i].astype(ml_dtypes.bfloat16)))
    assert first == 257


arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "pairs": st.integers(1, 5),
        "layout": st.sampled_from(reference.LAYOUTS),
        "start": st.sampled_from((0, 7, -5, 100_000, 2**31, -(2**31))),
        "axes": st.sampled_from((None, 2, 3)),
        "rest": st.sampled_from((0, 2)),
    }
)


def drawn(seed: int, pairs: int, layout: str, start: int, axes: int | None, rest: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    position = np.arange(3) + start
    out: dict[str, Any] = {
        "x": random.standard_normal((2, 3, 2 * pairs + rest)).astype(np.float32),
        "position": position,
        "base": float(random.uniform(100, 1e6)),
        "layout": layout,
        "rotary_dim": 2 * pairs,
    }
    if axes is not None:
        out["position"] = np.stack([position + k for k in range(axes)], axis=-1)
        out["sections"] = (pairs, *(0,) * (axes - 1)) if pairs < axes else (pairs - axes + 1, *(1,) * (axes - 1))
    return out


@pytest.mark.parametrize("form", [reference.table, reference.direct, reference.reduced], ids=lambda f: f.__name__)
@given(arguments)
def test_every_form_is_the_definition(form: Any, arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    exact = Exact(400)
    (wanted,), (got,) = evaluate(reference.rope, exact, given_), evaluate(form, exact, given_)
    limit = exact.mp.mpf(2) ** -300
    assert all(abs(a - b) < limit for a, b in zip(wanted.parts[0].ravel(), got.parts[0].ravel(), strict=True))


@given(arguments)
def test_balls_and_mpmath_agree(arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    ball, exact = Ball(120), Exact(400)
    (enclosed,), (value,) = evaluate(reference.rope, ball, given_), evaluate(reference.rope, exact, given_)
    for b, v in zip(enclosed.parts[0].ravel(), value.parts[0].ravel(), strict=True):
        sign, man, exp, _ = v._mpf_
        with Ball(500).context():
            exactly = flint.arb((-1) ** sign * int(man)) * flint.arb(2) ** int(exp)
            assert b.overlaps(flint.arb(exactly, flint.arb(2) ** -300))


def test_sections_of_equal_positions_are_plain_rope() -> None:
    x = np.random.default_rng(0).standard_normal((3, 8))
    position = np.arange(3)
    sectioned = reference.rope(x, np.stack([position] * 3, axis=-1), sections=(1, 1, 2))
    assert np.array_equal(sectioned, reference.rope(x, position))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rotary_dim": 3}, "even"),
        ({"rotary_dim": 10}, "between 0 and d = 8"),
        ({"layout": "sideways"}, "half, interleaved"),
        ({"sections": (1, 3)}, r"position\[t, axes\]"),
    ],
)
def test_wrong_arguments_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.rope(np.ones((2, 8)), np.arange(2), **keywords)
