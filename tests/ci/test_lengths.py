"""`assay bench --lengths`: each case at each length, drawn over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from assay.bench import Timed
from assay.cli import main
from assay.kernels import UsageError, resolve
from assay.lengths import Lengths, parsed, plot_lengths
from assay.properties.contract import Work
from assay.properties.timed import timed_case, work_of
from assay.roofline import Rates
from assay.timing import Setup
from tests.ci.test_bench import KERNELS
from tests.ci.test_plots import drawn


KERNEL = f"rms_norm={KERNELS}:right"


def test_cases_are_as_long_as_was_asked() -> None:
    """Along an axis of inputs, and by a keyword that is a length; with the work of it."""
    (scan,) = resolve("selective_scan=assay.impl.selective_scan:selective_scan")
    (stretched,) = Lengths("t", (4, 9)).of([scan], ())
    assert list(stretched.operator.timed) == ["short, t=4", "short, t=9", "long, t=4", "long, t=9"]
    assert timed_case(stretched.operator, "short, t=9", "float32").arguments["u"].shape == (1, 16, 9)
    (kernel,) = resolve("s4_kernel=assay.impl.dplr:s4_kernel")
    (stretched,) = Lengths("length", (5,)).of([kernel], ("long",))
    assert timed_case(stretched.operator, "long, length=5", "float32").arguments["length"] == 5
    assert work_of(stretched.operator, "long, length=5", "float32", backward=False).flops == 10


def test_two_axes_are_as_long_as_each_other() -> None:
    kernels = resolve("linear_attention=assay.impl.linear_attention:linear_attention")
    (stretched,) = Lengths("t+s", (7,)).of(kernels, ("long",))
    arguments = timed_case(stretched.operator, "long, t+s=7", "float32").arguments
    assert [arguments[name].shape for name in "qkv"] == [(1, 4, 7, 64)] * 3
    with pytest.raises(UsageError, match=r"no case that is timed has an axis 't\+r'"):
        Lengths("t+r", (7,)).of(kernels, ())


def test_kernels_without_the_axis_are_left_out() -> None:
    kernels = [
        *resolve("selective_scan=assay.impl.selective_scan:selective_scan"),
        *resolve("discretize=assay.impl.discretize:discretize"),
    ]
    assert {k.operator.name for k in Lengths("t", (4,)).of(kernels, ())} == {"selective_scan"}
    with pytest.raises(UsageError, match="no case that is timed has an axis 'r'"):
        Lengths("r", (4,)).of(kernels, ())


@pytest.mark.parametrize("text", ["t", "t+=3", "+t=3", "t=", "=3", "t=3,", "t=0", "t=-1", "t=a", "t 2=3"])
def test_what_is_no_list_of_lengths_is_one_line(text: str) -> None:
    result = CliRunner().invoke(main, ["bench", KERNEL, "--lengths", text])
    assert result.exit_code == 2
    assert "is not AXIS=LENGTH,LENGTH,..." in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_time_and_memory_are_drawn_over_the_length(tmp_path: Path) -> None:
    (kernel,) = resolve(KERNEL)
    over = parsed("t=64,256,1024")
    (kernel,) = over.of([kernel], ())
    found = [
        Timed(kernel, Setup("rms_norm", name, "float32", mode, 1), (n * 1e-6,) * 5, 1, "loop", Work(1, 1),
              Rates(1.0, 1.0, 1.0), {}, None if mode else 4096 * n)
        for mode in (False, True)
        for name, (_, n) in over.cases(resolve(KERNEL)[0].operator, ()).items()
    ]  # fmt: skip
    plot_lengths(tmp_path / "lengths.png", found, over)
    for name in ("one.svg", "two.svg"):
        plot_lengths(tmp_path / name, found, over)
    one, two = (tmp_path / name for name in ("one.svg", "two.svg"))
    assert "grows as the length" in one.read_text(encoding="utf-8")
    assert one.read_bytes() == two.read_bytes()
    width, height = drawn(tmp_path / "lengths.png")
    assert width > 1000
    assert height > 800
