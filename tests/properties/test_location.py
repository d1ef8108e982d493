"""Where a kernel is wrong: each wrong kernel is named by its phrase, and what is wrong everywhere by none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.impl.attention import softmax_attention_plain
from assay.impl.kernel import Claims
from assay.kernels import keywords
from assay.properties import OPERATORS
from assay.properties.contract import Integers, Operator, Tensor
from assay.properties.judgement import examine
from assay.properties.results import Examination
from assay.properties.run import Effort
from assay.runner import TorchSubject
from tests import kernels


ROPE = OPERATORS["rope"]
EFFORT = Effort(shrink_seconds=0)


def judged(kernel: Callable[..., Any], operator: Operator = ROPE, only: str = "agrees_with_oracle") -> Examination:
    subject = TorchSubject("kernel", kernel, Claims(operator.name), keywords(operator))
    return examine(operator, subject, "float32", effort=EFFORT, only=(only,))


def located(found: Examination) -> list[str]:
    assert [r.verdict for r in found.results] == ["fail"]
    return [f.text for r in found.results for f in r.diagnosis if f.kind == "location"]


Kernel = Callable[..., torch.Tensor]


def spoiled(where: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | bool]) -> Kernel:
    """A right kernel, but for the elements where it leaves x as it was, plus a little."""

    def kernel(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
        right = kernels.right(x, position, base=base)
        spot = torch.as_tensor(where(x, position))
        return torch.where(spot, right + (right.abs() + 1) / 8, right)

    return kernel


def unrotated(cut: Callable[[torch.Tensor, torch.Tensor], None]) -> Kernel:
    """A right kernel that copies a part of x: cut(out, x) writes it."""

    def kernel(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
        out = kernels.right(x, position, base=base).clone()
        cut(out, x)
        return out

    return kernel


def _last_two_channels(out: torch.Tensor, x: torch.Tensor) -> None:
    out[..., -2:] = x[..., -2:]


def _batches_from_one(out: torch.Tensor, x: torch.Tensor) -> None:
    out[1:] = x[1:]


def _head_zero(out: torch.Tensor, x: torch.Tensor) -> None:
    out[:, 0] = x[:, 0]


def _second_half(out: torch.Tensor, x: torch.Tensor) -> None:
    half = x.shape[-1] // 2
    out[..., half:] = x[..., half:] + 1


def _odd_rows(out: torch.Tensor, x: torch.Tensor) -> None:
    out[..., 1::2, :] = 0


def eight_bits(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return kernels.right(x, torch.where(position > 0, position % 256, position), base=base)


def unsigned(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return kernels.right(x, position % 256, base=base)


def signed(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return kernels.right(x, position.to(torch.int8).long(), base=base)


def reads_as_if_contiguous(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    if not x.is_contiguous():
        x = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
    return kernels.right(x, position, base=base)


def _transposed(x: torch.Tensor, position: torch.Tensor) -> bool:
    return not x.is_contiguous() and x.mT.is_contiguous()


def flushes(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return kernels.right(torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0, x), position, base=base)


def partial(
    x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0, rotary_dim: int | None = None
) -> torch.Tensor:
    right: torch.Tensor = ROPE.definition(x.double(), position, base=base, rotary_dim=rotary_dim).to(x.dtype)
    return right if rotary_dim is None else right * 1.5


@pytest.mark.parametrize(
    ("kernel", "phrase"),
    [
        (kernels.dead_tail, "only rows t >= 64"),
        (unrotated(_last_two_channels), "only the last 2 channels"),
        (unrotated(_batches_from_one), "only batch 1 onwards"),
        (unrotated(_head_zero), "only head 0"),
        (unrotated(_second_half), "only the second half of the channels"),
        (unrotated(_odd_rows), "only odd rows t"),
        (eight_bits, "every position above 255"),
        (unsigned, "every position outside 0..255"),
        (signed, "every position outside -128..127"),
        (reads_as_if_contiguous, "only where x is not contiguous"),
        (spoiled(_transposed), "only where x is stored transposed"),
        (flushes, "only in the regime subnormal"),
        (spoiled(lambda x, position: x.shape[-2] % 2 == 1), "only when the number of rows is odd"),
        (partial, "only when rotary_dim is given"),
        # Two channels are one pair, whatever the layout, and the base has no say.
        (lambda x, position: kernels.interleaved(x, position, base=500.0), "only when there are at least 4 channels"),
    ],
)
def test_a_location_is_told_by_its_phrase(kernel: Kernel, phrase: str) -> None:
    assert located(judged(kernel)) == [phrase]


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.zeros,
        kernels.copy,
        kernels.interleaved,
        kernels.off_by_one,
        kernels.base_10001,
        kernels.bf16_table,
        spoiled(lambda x, position: True),
        lambda x, position: kernels.right(x, position * 3 + 7),
        lambda x, position: kernels.right(x, position).flip(-1),
        lambda x, position: kernels.right(x, position) * torch.nan,
        lambda x, position: kernels.right(x, position) * (1 + 1e-3),
    ],
)
def test_what_is_wrong_everywhere_has_no_location(kernel: Kernel) -> None:
    assert located(judged(kernel)) == []


@pytest.mark.parametrize("seed", range(3))
def test_what_is_wrong_by_chance_has_no_location(seed: int) -> None:
    """One element in fifty, wherever it may be."""

    def sometimes(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed + hash(x.shape) % 1000)
        return torch.rand(x.shape, generator=random) < 0.02

    assert located(judged(spoiled(sometimes))) == []


def test_a_wrong_gradient_is_located() -> None:
    def kernel(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
        late = (x - x.detach()) * (torch.arange(x.shape[-2]) >= 4)[:, None]
        return kernels.right(x, position, base=base) + late

    assert located(judged(kernel, only="gradients_agree")) == ["gradient of x: only rows t >= 4"]


# Another operator: the axes of its output are those of several inputs --------------------------------------------


def _scores(q: Any, k: Any, segment: Any) -> Any:
    xp = q.__array_namespace__()
    return q @ xp.matrix_transpose(k), xp.sum(q, axis=-1)


SCORES = Operator(
    "scores",
    _scores,
    inputs=(Tensor("q", "h t d"), Tensor("k", "h s d"), Integers("segment", "s", low=0, high=7)),
)


def test_the_axes_of_an_output_are_found_by_their_lengths() -> None:
    def kernel(q: torch.Tensor, k: torch.Tensor, segment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = q @ k.mT
        out[..., 3:] += 1
        return out, q.sum(-1)

    assert located(judged(kernel, SCORES)) == ["output 0: only keys s >= 3"]


def test_every_wrong_output_is_located() -> None:
    def kernel(q: torch.Tensor, k: torch.Tensor, segment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = q @ k.mT
        total = q.sum(-1)
        return torch.where(segment == 0, out + 1, out), torch.cat([total[..., :-1], total[..., -1:] + 1], dim=-1)

    assert located(judged(kernel, SCORES)) == ["output 0: only at segment 0", "output 1: only the last row"]


def test_an_output_that_only_some_cases_ask_for_is_located() -> None:
    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: bool = False) -> Any:
        out = softmax_attention_plain(q, k, v, return_lse=return_lse)
        return (out[0], torch.cat([out[1][..., :-1], out[1][..., -1:] + 1], dim=-1)) if return_lse else out

    assert located(judged(kernel, OPERATORS["softmax_attention"])) == ["output 1: only the last row"]
