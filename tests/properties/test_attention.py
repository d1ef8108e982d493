"""The contract of softmax attention: right kernels pass, wrong ones are named, each property rejects a wrong kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import attention as fast
from assay.impl.adapters.torch import sdpa_math
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.attention import SOFTMAX_ATTENTION
from assay.properties.drawing import DTYPES, Case
from assay.properties.emulated import Emulated
from assay.properties.judgement import examine, pool, prepare
from assay.properties.results import Examination
from assay.properties.run import QUICK, Effort
from assay.properties.shifts import CONFIDENT, shifts, standing
from assay.properties.trial import Subject, Trial, Violation
from assay.reference.arithmetic.precision import PRECISIONS
from assay.runner import TorchSubject
from tests import attention_kernels as kernels


ATTENTION = SOFTMAX_ATTENTION
HALF = ("bfloat16", "float16")
ALL = ("float32", *HALF)


SHORT = replace(QUICK, shrink_seconds=0.2)


def subject(name: str, function: Callable[..., Any], **claims: Any) -> TorchSubject:
    return TorchSubject(name, function, Claims(ATTENTION.name, **claims), keywords(ATTENTION))


@functools.cache
def judged(name: str, function: Callable[..., Any], dtype: str = "float32", **claims: Any) -> Examination:
    return examine(ATTENTION, subject(name, function, **claims), dtype, effort=QUICK)


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(d, marks=pytest.mark.nightly) for d in HALF)])
@pytest.mark.parametrize("name", kernels.RIGHT)
def test_right_kernels_pass_under_the_form_that_they_claim(name: str, dtype: str) -> None:
    function, form = kernels.RIGHT[name]
    found = judged(name, function, dtype, form=form)
    assert failures(found) == {}
    assert found.inferred is not None


@pytest.mark.parametrize("name", kernels.WRONG)
def test_wrong_kernels_fail_and_are_named(name: str) -> None:
    function, told = kernels.WRONG[name]
    only = ("agrees_with_oracle", "parameters_are_meant")
    found = examine(ATTENTION, subject(name, function), "float32", effort=SHORT, only=only)
    result = found.results[0]
    assert result.verdict == "fail"
    if told is not None:
        assert next((f.kind, f.name) for f in result.diagnosis) == told


def test_a_wrong_backward_fails() -> None:
    assert "gradient" in failures(judged("wrong_backward", kernels.wrong_backward))["gradients_agree"]


def test_tf32_is_a_precision_of_its_own() -> None:
    assert failures(judged("tf32", kernels.tf32, precision="tf32")) == {}
    assert failures(judged("tf32", kernels.tf32)).keys() >= {"agrees_with_oracle", "gradients_agree"}


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
def test_every_step_in_half_is_a_precision_of_its_own(dtype: str) -> None:
    found = judged("eager", kernels.eager, dtype)
    assert failures(found)
    assert found.results[0].diagnosis[0].name == f"{dtype}-steps"
    assert failures(judged("eager", kernels.eager, dtype, precision=f"{dtype}-steps")) == {}


def test_bfloat16_weights_in_float32_are_named() -> None:
    function, _ = kernels.WRONG["half_weights"]
    assert judged("half_weights", function).results[0].diagnosis[0].name == "bfloat16"


# Inputs on which fixed tolerances go wrong ------------------------------------------------------------------------


def special(kind: str, dtype: str) -> Case:
    random = np.random.default_rng(5)
    q, k, v = (random.standard_normal((1, 2, n, 8)) for n in (5, 12, 12))
    if kind == "equal keys":
        k[...] = k[..., :1, :]
    elif kind == "constant rows":
        q[...], k[...] = q[..., :1], k[..., :1]
    elif kind == "ties":
        k[..., 6:, :] = k[..., :6, :]
    elif kind == "one-hot":
        v = np.broadcast_to(np.eye(12, 8), v.shape).copy()
    elif kind == "integers":
        q, k, v = (random.integers(-2, 3, x.shape).astype(float) for x in (q, k, v))
    elif kind == "sharp":
        q, k = 8 * q, 8 * k
    given = {n: x.astype(DTYPES[dtype]) for n, x in zip("qkv", (q, k, v), strict=True)}
    return Case(dtype, {**given, "scale": None}, kind, 5)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("kind", ["equal keys", "constant rows", "ties", "one-hot", "integers", "sharp"])
def test_special_inputs(kind: str, dtype: str) -> None:
    """Right kernels pass on them, forward and backward; a dropped key is seen."""
    case = special(kind, dtype)
    for name, (function, form) in kernels.RIGHT.items():
        trial = Trial(ATTENTION, subject(name, function, form=form), case)
        trial.agree()
        trial.agree_in_gradients()
    for place in (0, -1) if kind != "sharp" else ():  # where its weight may be nothing
        dropped = kernels.changed(scores=kernels.dropped(place))
        with pytest.raises(Violation):
            Trial(ATTENTION, subject("dropped", dropped), case).agree()


def test_the_bound_is_approached() -> None:
    trial = Trial(ATTENTION, subject("shifted", kernels.shifted, form="shifted"), special("ties", "float32"))
    trial.agree()
    assert trial.headroom > 0.005


# Properties ----------------------------------------------------------------------------------------------------


def full(change: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel with every keyword, ours with one thing changed."""

    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        causal: bool = False,
        alignment: str = "bottom-right",
        scale: float | None = None,
    ) -> torch.Tensor:
        given: dict[str, Any] = {"mask": mask, "causal": causal, "alignment": alignment, "scale": scale}
        return change(fast.softmax_attention_plain, q, k, v, given)  # type: ignore[no-any-return]

    return kernel


def _without_mask(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "mask": None}


def _without_causal(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "causal": False}


def _some(given: dict[str, Any]) -> torch.Tensor:
    """A number of each row that a bias shifts."""
    return given["mask"].float().amax(dim=-1, keepdim=True).clamp(-99, 99)


def _positions(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[-2], dtype=x.dtype)[:, None]


def _own_heads(x: torch.Tensor, h: int) -> torch.Tensor:
    """Key heads for each query head, in the order n mod g."""
    return x.repeat(1, h // x.shape[1], 1, 1)


# For each property, a wrong kernel that it must reject by itself.
KILLERS: dict[str, Callable[..., Any]] = {
    "within_the_values": lambda f, q, k, v, given: f(q, k, v, **given) * 1.5 + 1,
    "weights_sum_to_one": lambda f, q, k, v, given: f(q, k, v, **given) * 1.001,
    "keys_shift_together": lambda f, q, k, v, given: f(q, k.square(), v, **given),
    "bias_shifts_rows": lambda f, q, k, v, given: f(q, k, v, **given) * (1 if given["mask"] is None else _some(given)),
    "keys_permute": lambda f, q, k, v, given: f(q, k, v * (1 + _positions(v)), **given),
    "queries_permute": lambda f, q, k, v, given: f(q, k, v, **given) * (1 + _positions(q)),
    "hidden_keys_are_unseen": lambda f, q, k, v, given: f(q, k, v, **_without_mask(_without_causal(given))),
    "future_is_unseen": lambda f, q, k, v, given: f(q, k, v, **_without_causal(given)),
    "padding_may_be_nan": lambda f, q, k, v, given: f(q, k, v, **given) + 0 * k.sum() + 0 * v.sum(),
    "one_key_gives_its_value": lambda f, q, k, v, given: f(q, k, v, **given) * 1.001,
    "equal_keys_give_the_mean": lambda f, q, k, v, given: f(q, k + _positions(k), v, **given),
    "scale_zero_gives_the_mean": lambda f, q, k, v, given: f(q, k, v, **{**given, "scale": None}),
    "scale_moves_into_queries": lambda f, q, k, v, given: f(q, k, v, **{**given, "scale": None}),
    "groups_are_repeated_heads": lambda f, q, k, v, given: f(
        q, _own_heads(k, q.shape[1]), _own_heads(v, q.shape[1]), **given
    ),
}


def test_every_property_has_a_killer() -> None:
    assert set(KILLERS) == {p.name for p in ATTENTION.properties}


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_rejects_a_wrong_kernel(name: str) -> None:
    effort = Effort(examples=60, shrink_seconds=0.2, climb=0)
    (result,) = examine(ATTENTION, subject(name, full(KILLERS[name])), "float32", effort=effort, only=(name,)).results
    assert result.verdict == "fail"


@pytest.mark.parametrize("name", KILLERS)
def test_every_property_holds_for_a_right_kernel(name: str) -> None:
    right = full(lambda f, q, k, v, given: f(q, k, v, **given))
    effort = Effort(examples=60, climb=0)
    for dtype in ("float32", "bfloat16"):
        (result,) = examine(ATTENTION, subject("ours", right), dtype, effort=effort, only=(name,)).results
        assert (result.verdict, result.message) == ("pass", "")


# Parameters are meant --------------------------------------------------------------------------------------------


def stray_eps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    return kernels.changed(total=lambda w: w.sum(dim=-1, keepdim=True) + 1e-6)(q, k, v, scale=scale)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "name"),
    [(kernels.changed(c=lambda c: c * (1 + 1e-6)), "scale"), (stray_eps, "eps")],
    ids=["scale", "eps"],
)
def test_a_millionth_is_named_with_its_value(function: Callable[..., Any], name: str) -> None:
    kernel = subject(name, function)
    only = ("agrees_with_oracle", "parameters_are_meant")
    *_, meant = examine(ATTENTION, kernel, "float32", effort=Effort(), only=only).results
    assert meant.verdict == "fail"
    assert [(f.kind, f.name) for f in meant.diagnosis] == [("parameter", name)]
    (shift,) = shifts(ATTENTION, pool(ATTENTION, kernel, "float32", Effort()))
    assert abs(shift.value - 1e-6) <= CONFIDENT * shift.error + shift.legal


MEANT_RIGHT: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "plain": (fast.softmax_attention_plain, {"form": "shifted"}),
    "sdpa_math": (sdpa_math, {"form": "shifted"}),
    "sdpa": (fast.softmax_attention, {"form": "shifted"}),
    "online": (kernels.online(16), {"form": "online"}),
    "exp2": (kernels.online(16, log2=True), {"form": "online"}),
    "tf32": (kernels.tf32, {"precision": "tf32", "form": "shifted"}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ALL)
def test_no_right_run_shows_a_shift(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """106 seeds x (7 + 6 + 6) kernels in the three dtypes: 2,014 runs. Prints quantiles of value / standard error."""
    sigmas: dict[str, list[float]] = {}
    for seed in range(106):
        # Drawn for a kernel without masks, as some of these are.
        trials = pool(
            ATTENTION, subject("shifted", kernels.shifted, form="shifted"), dtype, Effort(seed=seed, pooled=32)
        )
        right: dict[str, Subject] = {
            name: subject(name, function, **claims)
            for name, (function, claims) in MEANT_RIGHT.items()
            if name != "tf32" or dtype == "float32"
        }
        truncating = f"{dtype}-truncating"
        right["truncating"] = Emulated(
            ATTENTION, dtype, form="shifted", precision=truncating, computes_in=PRECISIONS[truncating]
        )
        for name, kernel in right.items():
            # torch's causal mask is aligned top-left.
            own = [t.under(kernel) for t in trials if name != "sdpa_math" or not t.case.arguments["causal"]]
            assert shifts(ATTENTION, own) == [], (name, seed)
            sigmas.setdefault(name, []).extend(s.sigma for s in standing(ATTENTION, own))
    with capsys.disabled():
        for name, values in sigmas.items():
            told = ", ".join(f"{q:g}: {np.quantile(values, q):.2f}" for q in (0.5, 0.9, 0.99, 1))
            print(f"\n{dtype} {name}: {len(values)} shifts, quantiles of |z| {told}", end="")


# Many judgements -------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ALL)
def test_no_right_kernel_exceeds_the_bound(dtype: str) -> None:
    """13 kernels x 3 dtypes x 300 cases, forward and backward: 11,700 judgements."""
    ours = {"plain": (fast.softmax_attention_plain, "shifted"), "sdpa": (fast.softmax_attention, "shifted")}
    right: dict[str, tuple[Callable[..., Any], str | None]] = {**kernels.RIGHT, **ours}
    known: dict[str | None, list[Trial]] = {}
    first = subject("shifted", kernels.shifted, form="shifted")
    drawn = prepare(ATTENTION, first, dtype, Effort(examples=300, seed=1, climb=0))
    judged = 0
    for name, (function, form) in right.items():
        kernel = subject(name, function, form=form)
        same = known.setdefault(form, [t.under(kernel) for t in drawn])
        for trial in (t.under(kernel) for t in same):
            trial.agree()
            trial.agree_in_gradients()
            judged += 1
    assert judged == 13 * 300
