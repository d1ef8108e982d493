"""Every known way to pass a weak check is caught."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from assay.properties.judgement import Effort, examine
from tests import cheats
from tests.cheats import CHEATS, ELSEWHERE, Cheat
from tests.properties.test_judgement import subject


EFFORT = Effort(examples=32, climb=0, pooled=0, shrink_seconds=0)


@pytest.fixture(autouse=True)
def _what_a_kernel_patched_is_restored() -> Iterator[None]:
    kept = torch.allclose, torch.testing.assert_close, time.time
    cheats.forget()
    yield
    torch.allclose, torch.testing.assert_close, time.time = kept


@pytest.mark.parametrize("cheat", [c for c in CHEATS if not c.alone], ids=lambda c: c.kernel.__name__)
def test_it_is_caught(cheat: Cheat) -> None:
    only = ("agrees_with_oracle", cheat.by)
    found = examine(cheat.operator, subject(cheat.kernel, cheat.operator), "float32", effort=EFFORT, only=only)
    assert found.verdict in ("fail", "error")
    assert {r.property: r.verdict for r in found.results}[cheat.by] == cheat.verdict


def test_every_number_is_there() -> None:
    assert {*(c.number for c in CHEATS), *ELSEWHERE} == set(range(1, 29))
    assert not {c.number for c in CHEATS} & set(ELSEWHERE)


def test_the_page_is_in_step() -> None:
    assert (Path(cheats.__file__).parent / "CHEATS.md").read_text(encoding="utf-8") == cheats.page()
