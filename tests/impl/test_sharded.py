"""Losses over several processes are those of one, with their gradients; what goes wrong between ranks is seen."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties.contract import Operator
from assay.properties.contrastive import CLIP_LOSS, SIGLIP_LOSS
from assay.properties.trial import KernelError, NotCovered, Trial, Violation
from assay.runner import TorchSubject
from assay.sharded import Convention, Sharded
from tests import sharded_kernels as kernels
from tests.properties.test_contrastive import special


def on_ranks(operator: Operator, function: Callable[..., Any], world: int, **options: Any) -> Sharded:
    subject = TorchSubject(function.__name__, function, Claims(operator.name), keywords(operator))
    return Sharded(subject, world, **options)


def judge(operator: Operator, subject: Sharded, *, regime: str = "aligned", dtype: str = "float32", n: int = 9) -> None:
    trial = Trial(operator, subject, special(operator, regime, dtype, n=n, d=3))
    trial.agree()
    trial.agree_in_gradients()


RIGHT = [
    pytest.param(CLIP_LOSS, kernels.clip_gather, id="clip-gather"),
    pytest.param(CLIP_LOSS, kernels.clip_ring, id="clip-ring"),
    pytest.param(CLIP_LOSS, kernels.clip, id="clip-plain"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_gather, id="siglip-gather"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_ring, id="siglip-ring"),
    pytest.param(SIGLIP_LOSS, kernels.siglip, id="siglip-plain"),
]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("operator", "function"), RIGHT)
def test_the_loss_and_its_gradients_are_those_of_one_process(
    operator: Operator, function: Callable[..., Any], world: int
) -> None:
    """Uneven shards: of 9 pairs 1, 3 and 5 on three ranks; of 2 pairs none on the first."""
    with on_ranks(operator, function, world) as subject:
        for regime, n in (("aligned", 9), ("logits", 7), ("far logits", 5), ("duplicated", 2), ("saturated", 1)):
            judge(operator, subject, regime=regime, n=n)


WRONG = [
    pytest.param(CLIP_LOSS, kernels.clip_scaled, "gradient of", id="clip-scaled_by_world_size"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_scaled, "gradient of", id="siglip-scaled_by_world_size"),
    pytest.param(CLIP_LOSS, kernels.clip_without_offset, "output", id="clip-labels_without_rank_offset"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_without_offset, "output", id="siglip-labels_without_rank_offset"),
    pytest.param(CLIP_LOSS, kernels.clip_without_gradient, "gradient of", id="clip-gather_without_gradient"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_without_gradient, "gradient of", id="siglip-gather_without_gradient"),
    pytest.param(CLIP_LOSS, kernels.clip_seen_twice, "output", id="clip-shard_seen_twice"),
    pytest.param(SIGLIP_LOSS, kernels.siglip_seen_twice, "output", id="siglip-shard_seen_twice"),
]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("operator", "function", "what"), WRONG)
def test_what_goes_wrong_between_ranks_is_rejected(
    operator: Operator, function: Callable[..., Any], what: str, world: int
) -> None:
    with on_ranks(operator, function, world) as subject, pytest.raises(Violation, match=f"{what}.* is "):
        judge(operator, subject)


def test_ranks_that_return_different_losses_are_told() -> None:
    different = pytest.raises(KernelError, match="the ranks return different losses")
    with on_ranks(CLIP_LOSS, kernels.clip_of_one_rank, 2) as subject, different:
        judge(CLIP_LOSS, subject)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (kernels.dies, r"rank 1 of 2: the process died \(exit code 7\)"),
        (kernels.hangs, r"rank 0 and 1 of 2: no answer within 2 seconds"),
        (kernels.raises, r"rank 1 of 2: RuntimeError: no such kernel"),
    ],
    ids=["dies", "hangs", "raises"],
)
def test_a_rank_at_fault_is_an_error_and_not_a_hang(function: Callable[..., Any], told: str) -> None:
    case = special(CLIP_LOSS, "aligned", "float32")
    with on_ranks(CLIP_LOSS, function, 2, seconds=2.0) as subject:
        for _ in range(2):  # the ranks are started again
            with pytest.raises(KernelError, match=told):
                subject(case.arguments, None, ())


def test_a_refusal_is_no_fault() -> None:
    case = special(CLIP_LOSS, "aligned", "float32")
    with on_ranks(CLIP_LOSS, kernels.refuses, 2) as subject, pytest.raises(NotCovered, match="not for these"):
        subject(case.arguments, None, ())


def test_an_uneven_number_of_rows_is_refused_where_shards_must_be_equal() -> None:
    case = special(CLIP_LOSS, "aligned", "float32", n=7)
    subject = on_ranks(CLIP_LOSS, kernels.clip_gather, 2, convention=Convention(even=True))
    with pytest.raises(NotCovered, match="7 rows do not divide evenly among 2 ranks"):
        subject(case.arguments, None, ())


# open_clip ------------------------------------------------------------------------------------------------------------

open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
AVERAGED = Convention(loss="mean", gradients="mean", even=True)


def of_open_clip(operator: Operator, function: Callable[..., Any], world: int, **options: Any) -> Sharded:
    subject = TorchSubject("open_clip", partial(function, **options), Claims(operator.name), keywords(operator))
    return Sharded(subject, world, AVERAGED)


@open_clip
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("local_loss", [False, True])
def test_open_clip_is_the_loss_of_one_process_if_it_gathers_with_gradients(local_loss: bool, world: int) -> None:
    from assay.impl.adapters.open_clip import clip_on_ranks

    options = {"local_loss": local_loss, "gather_with_grad": True}
    with of_open_clip(CLIP_LOSS, clip_on_ranks, world, **options) as subject:
        judge(CLIP_LOSS, subject, n=6)


@open_clip
@pytest.mark.parametrize("local_loss", [False, True])
def test_open_clip_is_not_if_it_gathers_without(local_loss: bool) -> None:
    """Its default: every rank differentiates by its own features alone, and averaging divides that by their number."""
    from assay.impl.adapters.open_clip import clip_on_ranks

    options = {"local_loss": local_loss, "gather_with_grad": False}
    rejected = pytest.raises(Violation, match="gradient of image")
    with of_open_clip(CLIP_LOSS, clip_on_ranks, 2, **options) as subject, rejected:
        judge(CLIP_LOSS, subject, n=6)


@open_clip
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("exchange", ["bidir", "shift", "reduce", "gather"])
def test_siglip_of_open_clip_is_the_loss_of_one_process(exchange: str, world: int) -> None:
    from assay.impl.adapters.open_clip import siglip_on_ranks

    with of_open_clip(SIGLIP_LOSS, siglip_on_ranks, world, exchange=exchange) as subject:
        judge(SIGLIP_LOSS, subject, n=6)
