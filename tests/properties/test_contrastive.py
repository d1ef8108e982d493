"""The contracts of the contrastive losses: right kernels pass, wrong ones are named, each property rejects one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from assay.impl import contrastive as fast
from assay.impl.kernel import Claims
from assay.impl.triton import contrastive as on_triton
from assay.kernels import keywords
from assay.properties.contrastive import CLIP_LOSS as CLIP, REGIMES, SIGLIP_LOSS as SIGLIP
from assay.properties.diagnosis import diagnose
from assay.properties.drawing import DTYPES, Case, place
from assay.properties.judgement import examine, prepare
from assay.properties.results import Examination
from assay.properties.run import Effort
from assay.properties.trial import KernelError, Trial, Violation
from assay.reference.arithmetic.precision import FORMATS
from assay.runner import TorchSubject
from tests import contrastive_kernels as kernels


ALL = ("float32", "bfloat16", "float16")
SHORT = Effort(examples=20, climb=0, pooled=0, shrink_seconds=0.2, stop="first")
RIGHT = [
    *(pytest.param(CLIP, *kernel, id=f"clip-{name}") for name, kernel in kernels.CLIP.items()),
    *(pytest.param(SIGLIP, *kernel, id=f"siglip-{name}") for name, kernel in kernels.SIGLIP.items()),
]
WRONG = [
    *(pytest.param(CLIP, *kernel, id=f"clip-{name}") for name, kernel in kernels.WRONG_CLIP.items()),
    *(pytest.param(SIGLIP, *kernel, id=f"siglip-{name}") for name, kernel in kernels.WRONG_SIGLIP.items()),
]


def subject(operator: Any, function: Callable[..., Any], **claims: Any) -> TorchSubject:
    return TorchSubject("kernel", function, Claims(operator.name, **claims), keywords(operator))


def failures(found: Examination) -> dict[str, str]:
    return {r.property: r.message for r in found.results if r.verdict not in ("pass", "skipped")}


def special(operator: Any, regime: str, dtype: str, n: int = 7, d: int = 7, seed: int = 0) -> Case:
    """A case of one of the operator's own regimes."""
    random = np.random.default_rng(seed)
    drawn = REGIMES[regime](random, {"image": (n, d), "text": (n, d)}, FORMATS[dtype])
    arguments: dict[str, Any] = {p.name: drawn.get(p.name, p.default) for p in operator.parameters}
    arguments |= {
        name: place(np.asarray(drawn[name]).astype(DTYPES[dtype]), "contiguous") for name in ("image", "text")
    }
    return Case(dtype, arguments, regime, seed)


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(dtype, marks=pytest.mark.nightly) for dtype in ALL[1:])])
@pytest.mark.parametrize(("operator", "function", "form"), RIGHT)
def test_right_kernels_keep_the_bound_of_their_form_in_every_regime(
    operator: Any, function: Callable[..., Any], form: str | None, dtype: str
) -> None:
    for regime in REGIMES:
        trial = Trial(operator, subject(operator, function, form=form), special(operator, regime, dtype))
        trial.agree()
        trial.agree_in_gradients()


@pytest.mark.parametrize(("operator", "function", "told"), WRONG)
def test_wrong_kernels_leave_the_bound_in_some_regime(
    operator: Any, function: Callable[..., Any], told: tuple[str, str] | None
) -> None:
    at_zero = {"image": np.zeros((7, 7), np.float32), "text": np.eye(7, dtype=np.float32), "bias": 0.0}

    def leaves(regime: str) -> bool:
        case = special(operator, regime, "float32")
        if function is kernels.WRONG_SIGLIP["kinked"][0]:  # wrong where a logit is exactly 0
            case = Case("float32", {**case.arguments, **at_zero}, "ordinary", 0)
        trial = Trial(operator, subject(operator, function), case)
        try:
            trial.agree()
            trial.agree_in_gradients()
        except (Violation, KernelError):
            return True
        return False

    assert any(leaves(regime) for regime in REGIMES)


@pytest.mark.parametrize(("operator", "function", "told"), [w for w in WRONG if w.values[2] is not None])
def test_wrong_kernels_are_named(operator: Any, function: Callable[..., Any], told: tuple[str, str]) -> None:
    trials = [
        Trial(operator, subject(operator, function), special(operator, regime, "float32", n=5, d=3))
        for regime in REGIMES
    ]
    for trial in trials:
        try:
            trial.agree()
        except Violation:
            trial.headroom = np.inf
    assert any(t.headroom > 1 for t in trials)
    found = diagnose(operator, trials, None)
    assert (found[0].kind, found[0].name) == told


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("operator", "function", "name"),
    [
        pytest.param(CLIP, kernels.clip_with(c=lambda c: c * 1.0001), "scale", id="clip"),
        pytest.param(SIGLIP, kernels.siglip_with(bias_of=lambda b: b * 1.0001), "bias", id="siglip"),
    ],
)
def test_a_parameter_that_is_off_is_named(operator: Any, function: Callable[..., Any], name: str) -> None:
    effort = Effort(examples=8, climb=0, shrink_seconds=0.2, pooled=48)
    found = examine(operator, subject(operator, function), "float32", effort=effort, only=("parameters_are_meant",))
    assert found.results[-1].verdict == "fail"
    assert f"as if {name} were 1.0" in found.results[-1].message


@pytest.mark.parametrize("operator", [CLIP, SIGLIP], ids=lambda o: o.name)
@pytest.mark.parametrize("name", ["scale", "bias"])
def test_a_parameter_without_gradient_is_told(operator: Any, name: str) -> None:
    if operator is CLIP and name == "bias":
        pytest.skip("CLIP has no bias")
    table = kernels.WRONG_CLIP if operator is CLIP else kernels.WRONG_SIGLIP
    trial = Trial(
        operator, subject(operator, table[f"{name}_has_no_gradient"][0]), special(operator, "aligned", "float32")
    )
    trial.agree()
    with pytest.raises(Violation, match=f"there is no gradient of {name}"):
        trial.agree_in_gradients()


@pytest.mark.parametrize("dtype", ALL)
def test_a_loss_may_be_wide(dtype: str) -> None:
    """float32 is accepted and judged as float32; the dtype of the features is accepted and judged as that."""
    case = special(CLIP, "logits", dtype)
    wide = Trial(CLIP, subject(CLIP, kernels.cross_entropy), case)
    narrow = Trial(
        CLIP,
        subject(CLIP, lambda image, text, *, scale: kernels.cross_entropy(image, text, scale=scale).to(image.dtype)),
        case,
    )
    for trial in (wide, narrow):
        trial.agree()
    if dtype == "float32":
        assert wide.bound[0] == narrow.bound[0]
    else:
        assert wide.bound[0] * 64 < narrow.bound[0]
        with pytest.raises(Violation, match="float64 instead of"):
            Trial(
                CLIP,
                subject(CLIP, lambda image, text, *, scale: kernels.cross_entropy(image, text, scale=scale).double()),
                case,
            ).agree()


@pytest.mark.parametrize("operator", [CLIP, SIGLIP], ids=lambda o: o.name)
def test_the_bound_of_a_logits_gradient_is_absolute_and_small(operator: Any) -> None:
    """|dS - dS*| <= (p 2 eps + 4 u) / n is what the arithmetic finds by itself: some units of u / n."""
    case = special(operator, "logits", "float32", n=8, d=8)
    function = kernels.cross_entropy if operator is CLIP else kernels.log_sigmoid
    trial = Trial(operator, subject(operator, function), case)
    trial.agree_in_gradients()
    tower = "image" if np.array_equal(case.arguments["text"], np.eye(8)) else "text"
    assert (trial.gradient_bound[tower] <= 2.0**-24 * 200 / 8).all()
    assert (trial.gradient_bound[tower] > 0).all()


@pytest.mark.parametrize("operator", [CLIP, SIGLIP], ids=lambda o: o.name)
@pytest.mark.parametrize("regime", ["aligned", "asymmetric", "logits", "far logits"])
def test_the_null_kernel_is_rejected_where_it_matters(operator: Any, regime: str) -> None:
    def zero(image: torch.Tensor, text: torch.Tensor, **rest: Any) -> torch.Tensor:
        return (image.sum() + text.sum()) * 0

    # Two channels: pairs are not told apart so well that nothing is left to lose.
    with pytest.raises(Violation):
        Trial(operator, subject(operator, zero), special(operator, regime, "float32", n=9, d=2)).agree()


@pytest.mark.parametrize("regime", ["far logits", "beyond float16", "saturated"])
@pytest.mark.parametrize(
    ("operator", "function"),
    [(CLIP, kernels.unshifted), (SIGLIP, kernels.siglip_with(loss=kernels.naive))],
    ids=["clip", "siglip"],
)
def test_logits_of_ten_thousand_are_finite_and_the_naive_form_is_not(
    operator: Any, function: Callable[..., Any], regime: str
) -> None:
    wrong = 0
    for seed in range(6):
        case = special(operator, regime, "float32", seed=seed)
        ours = getattr(fast, operator.name)
        trial = Trial(operator, subject(operator, ours), case)
        trial.agree()
        trial.agree_in_gradients()
        assert np.isfinite(trial.bound[0])
        try:
            Trial(operator, subject(operator, function), case).agree()
        except Violation:
            wrong += 1
    assert wrong


# Properties ----------------------------------------------------------------------------------------------------


def ours(operator: Any, change: Callable[..., Any]) -> Callable[..., Any]:
    """Our kernel with one thing changed, and every keyword of the signature."""
    if operator is CLIP:

        def clip(image: Any, text: Any, *, scale: Any, positives: Any = None) -> Any:
            return change(fast.clip_loss, image, text, {"scale": scale, "positives": positives})

        return clip

    def siglip(image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None) -> Any:
        return change(fast.siglip_loss, image, text, {"scale": scale, "bias": bias, "positives": positives})

    return siglip


def doubled(given: dict[str, Any], name: str) -> dict[str, Any]:
    """The value is kept, its gradient doubled."""
    value = given[name]
    return {**given, name: 2 * value - value.detach() if isinstance(value, torch.Tensor) else value}


def _sum(x: torch.Tensor) -> torch.Tensor:
    return x.float().sum()


KILLERS: dict[str, Callable[..., Any]] = {
    "pairs_permute": lambda f, x, y, given: f(x, y, **given) + _sum(x[0]),
    "channels_rotate": lambda f, x, y, given: f(x, y, **given) + _sum(x[:, 0]),
    "sides_swap": lambda f, x, y, given: f(x, y, **given) + _sum(x),
    "scale_moves_into_features": lambda f, x, y, given: f(x, y, **{**given, "scale": given["scale"] + 1}),
    "convex_in_the_scores": lambda f, x, y, given: -f(x, y, **given),
    "gradients_are_homogeneous": lambda f, x, y, given: f(x, y, **doubled(given, "scale")),
    "a_constant_changes_nothing": lambda f, x, y, given: f(x, y, **given) + _sum(y[:, -1]),
    "one_pair_costs_nothing": lambda f, x, y, given: f(x, y, **given) + 1,
    "equal_pairs_cost_ln_n": lambda f, x, y, given: f(x, y, **given) * 1.01,
    "copies_cost_ln_2": lambda f, x, y, given: f(x, y, **given) * 1.01,
    "simplex_is_least": lambda f, x, y, given: f(x, y, **given) * 0.9,
    "gradients_sum_to_zero": lambda f, x, y, given: f(x, y, **given) + _sum(x - x.detach()) + _sum(y - y.detach()),
    "a_constant_is_a_bias": lambda f, x, y, given: f(x, y, **{**given, "bias": -1.0}),
    "reflection": lambda f, x, y, given: f(x, y, **given) * 1.01,
    "parts_add_up": lambda f, x, y, given: f(x, y, **given) * len(x),
    "bias_gradient_is_the_sum": lambda f, x, y, given: f(x, y, **doubled(given, "bias")),
}
OWNERS = [(o, p.name) for o in (CLIP, SIGLIP) for p in o.properties]


def test_every_property_has_a_killer() -> None:
    assert set(KILLERS) == {name for _, name in OWNERS}


def judged(operator: Any, name: str, killer: bool, dtype: str) -> Any:
    change = KILLERS[name] if killer else lambda f, x, y, given: f(x, y, **given)
    effort = Effort(examples=16, shrink_seconds=0.1, climb=0, pooled=0)
    return examine(operator, subject(operator, ours(operator, change)), dtype, effort=effort, only=(name,)).results[0]


# Nightly: judging by drawn cases takes up to a minute for one kernel, and the operators are not offered yet.
@pytest.mark.nightly
@pytest.mark.parametrize(("operator", "name"), OWNERS, ids=lambda x: getattr(x, "name", x))
def test_every_property_rejects_a_wrong_kernel(operator: Any, name: str) -> None:
    assert judged(operator, name, True, "float32").verdict == "fail"


# Nightly: judging by drawn cases takes up to a minute for one kernel, and the operators are not offered yet.
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("operator", "name"), OWNERS, ids=lambda x: getattr(x, "name", x))
def test_every_property_holds_for_a_right_kernel(operator: Any, name: str, dtype: str) -> None:
    result = judged(operator, name, False, dtype)
    assert (result.verdict, result.message) == ("pass", "")


# Many judgements -------------------------------------------------------------------------------------------------

MANY = 72


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter computes in NumPy, which tells of overflow
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("form", [*CLIP.forms, *SIGLIP.forms, None])
def test_no_right_kernel_exceeds_the_bound(form: str | None, dtype: str) -> None:
    """24 kernels x 3 dtypes x 72 cases, forward and backward: 5,184 judgements."""
    judged = 0
    for operator, ours, table in ((CLIP, fast.clip_loss, kernels.CLIP), (SIGLIP, fast.siglip_loss, kernels.SIGLIP)):
        alike: dict[bool, list[TorchSubject]] = {}
        for function, claimed in [*table.values(), (ours, None), (getattr(on_triton, operator.name), None)]:
            if claimed == form:
                kernel = subject(operator, function, form=form)
                alike.setdefault(kernel.supports("positives"), []).append(kernel)
        for group in alike.values():
            drawn = prepare(operator, group[0], dtype, Effort(examples=MANY, seed=1, climb=0))
            assert len(drawn) == MANY
            for kernel in group:
                for trial in (t.under(kernel) for t in drawn):
                    trial.agree()
                    trial.agree_in_gradients()
                    judged += 1
    assert judged == MANY * JUDGED[form]


JUDGED = {
    "logsumexp": 7,
    "online": 2,
    "merged": 2,
    "log_sigmoid": 4,
    "logarithm": 1,
    "subtracted": 2,
    None: 6,
}
"""How many kernels claim each form."""
