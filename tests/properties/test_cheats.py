"""Every known way to pass a weak check is caught."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assay.kernels import resolve
from assay.process import Limits
from assay.properties.judgement import examine
from assay.properties.run import QUICK, Effort
from tests import cheats
from tests.cheats import CHEATS, ELSEWHERE, Cheat
from tests.properties.test_judgement import subject


BAD = ("fail", "error")
EFFORT = Effort(examples=64, climb=0, pooled=0, shrink_seconds=0)
"""One demand alone has fewer calls of a case than a run."""


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
    assert found.verdict in BAD
    assert {r.property: r.verdict for r in found.results}[cheat.by] == cheat.verdict


@pytest.mark.nightly
@pytest.mark.parametrize("cheat", [c for c in CHEATS if not c.alone], ids=lambda c: c.kernel.__name__)
def test_a_quick_run_catches_it(cheat: Cheat) -> None:
    """With every demand in its turn, as `assay check --quick` tries them."""
    effort = replace(QUICK, shrink_seconds=0)
    assert examine(cheat.operator, subject(cheat.kernel, cheat.operator), "float32", effort=effort).verdict in BAD


def test_every_number_is_there() -> None:
    assert {*(c.number for c in CHEATS), *ELSEWHERE} == set(range(1, 29))
    assert not {c.number for c in CHEATS} & set(ELSEWHERE)


def test_the_page_is_in_step() -> None:
    assert (Path(cheats.__file__).parent / "CHEATS.md").read_text(encoding="utf-8") == cheats.page()


@pytest.mark.parametrize("cheat", [c for c in CHEATS if c.alone], ids=lambda c: c.kernel.__name__)
def test_in_a_process_of_its_own_nothing_is_there_to_be_found(cheat: Cheat, tmp_path: Path) -> None:
    """Beside the judge it passes, as any kernel can that reads the judge's memory."""
    beside = examine(cheat.operator, subject(cheat.kernel, backward="none"), "float32", effort=EFFORT, only=(cheat.by,))
    assert beside.verdict == "pass"
    path = tmp_path / "alone.py"
    path.write_text(f"import gc\nimport inspect\nimport torch\n\n\n{inspect.getsource(cheat.kernel)}", encoding="utf-8")
    limits = Limits()
    (known,) = resolve(f"{cheat.operator.name}={path}:{cheat.kernel.__name__}", limits)
    alone = examine(cheat.operator, known.subject("cpu", limits), "float32", effort=EFFORT, only=(cheat.by,))
    assert alone.verdict == cheat.verdict
