"""Losses over several processes are those of one, with their gradients; what goes wrong between ranks is seen."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from assay import sharded
from assay.cli import main
from assay.impl.kernel import Claims, Ranks
from assay.kernels import keywords
from assay.process import Limits
from assay.properties.contract import Operator
from assay.properties.contrastive import CLIP_LOSS, SIGLIP_LOSS
from assay.properties.trial import KernelError, NotCovered, Trial, Violation
from assay.questions import signature
from assay.sharded import Sharded
from tests import sharded_kernels as kernels
from tests.properties.test_contrastive import special


@pytest.fixture(autouse=True)
def one_group_of_ranks_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than anything here; kernels of a user's module would have some of their own."""
    monkeypatch.setattr(sharded, "place_of", lambda module, function: "")


def on_ranks(
    operator: Operator, function: Callable[..., Any], world: int, ranks: Ranks = "sum", **limits: Any
) -> Sharded:
    module = function.__module__
    place = (
        f"{module if module.startswith('assay.') else Path(inspect.getfile(function)).resolve()}:{function.__name__}"
    )
    claims = Claims(operator.name, world=world, ranks=ranks)
    limit = Limits(**limits)
    return Sharded(function.__name__, place, claims, signature(function), keywords(operator), limit, own=False)


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


@pytest.mark.parametrize(("operator", "function"), RIGHT)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_loss_and_its_gradients_are_those_of_one_process(
    operator: Operator, function: Callable[..., Any], world: int
) -> None:
    """Uneven shards: of 9 pairs 1, 3 and 5 on three ranks; of 2 pairs none on the first."""
    subject = on_ranks(operator, function, world)
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


@pytest.mark.parametrize(("operator", "function", "what"), WRONG)
@pytest.mark.parametrize("world", [2, 3])
def test_what_goes_wrong_between_ranks_is_rejected(
    operator: Operator, function: Callable[..., Any], what: str, world: int
) -> None:
    subject = on_ranks(operator, function, world)
    with pytest.raises(Violation, match=f"{what}.* is "):
        judge(operator, subject)


def test_ranks_that_return_different_losses_are_told() -> None:
    subject = on_ranks(CLIP_LOSS, kernels.clip_of_one_rank, 2)
    with pytest.raises(KernelError, match="the ranks return different losses"):
        judge(CLIP_LOSS, subject)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (kernels.dies, "rank 1 of 2: the process exited with code 7 in this call"),
        (kernels.hangs, "rank [01] of 2: .*the call took longer than 6 s"),
        (kernels.raises, "rank 1 of 2: RuntimeError: no such kernel"),
    ],
    ids=["dies", "hangs", "raises"],
)
def test_a_rank_at_fault_is_an_error_and_not_a_hang(function: Callable[..., Any], told: str) -> None:
    case = special(CLIP_LOSS, "aligned", "float32")
    subject = on_ranks(CLIP_LOSS, function, 2, call=2.0)
    for _ in range(2):  # the ranks are started again
        with pytest.raises(KernelError, match=told):
            subject(case.arguments, None, ())


def test_a_refusal_is_no_fault() -> None:
    case = special(CLIP_LOSS, "aligned", "float32")
    subject = on_ranks(CLIP_LOSS, kernels.refuses, 2)
    with pytest.raises(NotCovered, match="not for these"):
        subject(case.arguments, None, ())


def test_an_uneven_number_of_rows_is_refused_where_shards_must_be_equal() -> None:
    case = special(CLIP_LOSS, "aligned", "float32", n=7)
    subject = on_ranks(CLIP_LOSS, kernels.clip_gather, 2, ranks="mean")
    with pytest.raises(NotCovered, match="7 rows do not divide evenly among 2 ranks"):
        subject(case.arguments, None, ())


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_command_line_judges_over_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a failure is run again on as many ranks."""
    monkeypatch.chdir(tmp_path)
    wrong = f"clip_loss={inspect.getfile(kernels)}:clip_without_offset"
    found = invoke("check", wrong, "--world", "2", "--quick", "--dtype", "float32", "--examples", "4")
    assert found.exit_code == 1, found.output
    assert "agrees_with_oracle: output[] is" in found.output
    (stored, *_) = sorted(Path(".assay", "counterexamples").glob("*agrees_with_oracle*.json"))
    again = invoke("replay", str(stored))
    assert again.exit_code == 1, again.output
    assert "still fails: output[] is" in again.output


@pytest.mark.nightly
@pytest.mark.parametrize("spelling", ["clip_loss", "clip_loss_ring", "siglip_loss", "siglip_loss_ring"])
def test_ours_pass_every_demand_over_ranks(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = invoke("check", f"assay.impl.sharded:{spelling}")
    assert found.exit_code == 0, found.output


def test_ranks_need_processes_of_their_own() -> None:
    found = invoke("check", "assay.impl.sharded:clip_loss", "--in-process")
    assert found.exit_code == 2
    assert "assay.impl.sharded:clip_loss runs over 2 ranks, each in a process of its own" in found.output
    found = invoke("check", "assay.impl.contrastive:clip_loss", "--in-process", "--world", "2")
    assert found.exit_code == 2
    assert "--world goes without --in-process" in found.output


# open_clip ------------------------------------------------------------------------------------------------------------

open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")


@open_clip
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["clip_gathered_with_grad", "clip_local_with_grad"])
def test_open_clip_is_the_loss_of_one_process_if_it_gathers_with_gradients(name: str, world: int) -> None:
    from assay.impl.adapters import open_clip as adapters

    judge(CLIP_LOSS, on_ranks(CLIP_LOSS, getattr(adapters, name), world, "mean"), n=6)


@open_clip
@pytest.mark.parametrize("name", ["clip_gathered", "clip_local"])
def test_open_clip_is_not_if_it_gathers_without(name: str) -> None:
    """Its default: every rank differentiates by its own features alone, and averaging divides that by their number."""
    from assay.impl.adapters import open_clip as adapters

    subject = on_ranks(CLIP_LOSS, getattr(adapters, name), 2, "mean")
    with pytest.raises(Violation, match="gradient of image"):
        judge(CLIP_LOSS, subject, n=6)


@open_clip
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("exchange", ["bidir", "shift", "reduce", "gather"])
def test_siglip_of_open_clip_is_the_loss_of_one_process(exchange: str, world: int) -> None:
    from assay.impl.adapters import open_clip as adapters

    judge(SIGLIP_LOSS, on_ranks(SIGLIP_LOSS, getattr(adapters, f"siglip_{exchange}"), world, "mean"), n=6)
