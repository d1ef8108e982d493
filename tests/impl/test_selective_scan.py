"""The selective scan in torch: however positions are cut into blocks and chunks, states are the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from assay.impl import selective_scan as plain
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.contract import Structure
from assay.properties.drawing import Case
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.properties.selective_scan import SELECTIVE_SCAN
from assay.properties.timed import timed_case
from assay.properties.trial import Trial
from assay.runner import TorchSubject
from tests import selective_scan_kernels as kernels
from tests.interpreted import triton


CLAIMS = claims_of(plain.selective_scan)
assert CLAIMS is not None


def arguments(t: int, *, b: int = 2, d: int = 3, n: int = 2) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(t)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64).requires_grad_()

    rates = (-torch.rand(d, n, generator=made, dtype=torch.float64)).requires_grad_()
    steps = torch.rand(b, d, t, generator=made, dtype=torch.float64).requires_grad_()
    rows = {"B": drawn(b, n, t), "C": drawn(b, n, t), "D": drawn(d), "state": drawn(b, d, n)}
    return {"u": drawn(b, d, t), "delta": steps, "A": rates, **rows}


@pytest.mark.parametrize("row", [1, 64, 1 << 12])
@pytest.mark.parametrize("length", [1, 5, 16, 100])
@pytest.mark.parametrize("t", [1, 4, 21])
def test_blocks_and_chunks_of_any_size_are_right(
    t: int, length: int, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, state and gradients, within the derived bound in float64."""
    monkeypatch.setattr(plain, "SHORTEST", length)
    monkeypatch.setattr(plain, "BLOCK", 1)
    monkeypatch.setattr(plain, "ROW", row)
    trial = whole(t)
    subject = TorchSubject("scan", plain.selective_scan, CLAIMS, keywords(SELECTIVE_SCAN))
    mine = trial.under(subject)
    mine.agree()
    mine.agree_in_gradients()


@cache
def whole(t: int) -> Trial:
    """One case, whose truth and bounds every size shares."""
    subject = TorchSubject("scan", plain.selective_scan, CLAIMS, keywords(SELECTIVE_SCAN))
    arrays = {name: x.detach().numpy() for name, x in arguments(t).items()}
    trial = Trial(SELECTIVE_SCAN, subject, Case("float64", arrays, "ordinary", t))
    trial.agree()
    trial.agree_in_gradients()
    return trial


def test_without_positions_there_is_nothing_but_the_state() -> None:
    given = {name: x.detach() for name, x in arguments(0).items()}
    y, state = plain.selective_scan(**given)
    assert y.shape == (2, 3, 0)
    assert torch.equal(state, given["state"])
    assert state.data_ptr() != given["state"].data_ptr()


def test_decays_from_1_to_0_keep_their_digits() -> None:
    """exp(-1e-7) and exp(-1e4) beside each other, over 4,096 positions, against float64."""
    t = 4096
    delta = torch.tensor([1e-7, 1e-3, 1e4]).repeat(t // 3 + 1)[:t].expand(1, 2, t).contiguous()
    u, B, C = (torch.randn(1, n, t, generator=torch.Generator().manual_seed(n)) for n in (2, 3, 3))
    A = -torch.tensor([[1.0, 2, 3], [1, 1, 1]])
    wide, _ = kernels.steps(*(x.double() for x in (u, delta, A, B, C)))
    size, _ = kernels.steps(*(x.double() for x in (u.abs(), delta, A, B.abs(), C.abs())))
    y, _ = plain.selective_scan(u, delta, A, B, C)
    # Every third step forgets all before it. So a term is an input (2 roundings), through 2 decays at most (each an
    # exponential within 3 ulps, of an exponent that is hardly rounded, and a product), 2 sums, and one of 3 products.
    roundings = 2 + 2 * (2 * 3 + 1) + 2 + 3
    assert ((y - wide).abs() <= (roundings + 1) * 2.0**-24 * size).all()


@pytest.mark.parametrize(("t", "d"), [(2048, 64), (512, 256)], ids=["chunks side by side", "one chunk"])
def test_memory_grows_no_faster_than_the_sequence(t: int, d: int) -> None:
    """What is kept alive for the backward, beside the inputs, is a state for each block."""
    n = 16
    given = [torch.rand(1, d, t), torch.rand(1, d, t), -torch.rand(d, n), torch.rand(1, n, t), torch.rand(1, n, t)]
    saved: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.untyped_storage().nbytes() // x.itemsize)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        plain.selective_scan(*(x.requires_grad_() for x in given))
    states = sum(saved) - sum(x.numel() for x in given)
    assert states == d * n * -(-t // (plain.BLOCK // (d * n)))
    assert states < d * n * t / 16


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "state"])
def test_wrong_arguments_are_refused(name: str) -> None:
    given = {n: x.detach() for n, x in arguments(3).items()}
    with pytest.raises(ValueError, match=f"{name} must have the shape"):
        plain.selective_scan(**{**given, name: torch.ones(7, 7)})
    with pytest.raises(TypeError, match=name):
        plain.selective_scan(**{**given, name: given[name].long()})


@pytest.mark.nightly
def test_65536_positions_are_right() -> None:
    """In float32 against float64, within a bound that counts the roundings of each term by how long ago it entered."""
    t, n, u = 65_536, 4, 2.0**-24
    operator = replace(SELECTIVE_SCAN, timed={"it": Structure(sizes={"b": 1, "d": 2, "t": t, "n": n}, regime="decays")})
    given = [
        torch.from_numpy(timed_case(operator, "it", "float32").arguments[x]) for x in ("u", "delta", "A", "B", "C")
    ]
    y, last = plain.selective_scan(*given)
    values, delta, A, B, C = (x.double() for x in given)
    exponents = delta.mT[0, :, :, None] * A
    entered = (delta * values).mT[0, :, :, None] * B.mT[0, :, None]
    h, size, age = (torch.zeros_like(A) for _ in range(3))  # a state, of absolute values, and those times their age
    states = []
    for z, x in zip(exponents, entered, strict=True):
        h, age, size = z.exp() * h + x, z.exp() * (age + size), z.exp() * size + x.abs()
        states.append(torch.stack((h, size, age)))
    h, size, age = torch.stack(states, dim=1)
    # A decay: its exponent is rounded, an exponential within 3 ulps, a product and a sum; as much again between chunks.
    # Beside them, 3 products, what came before a chunk added to it, a sum over the states, and float64.
    each, once = 2 * (2 * 3 + 2) + float(exponents.abs().max()), 3 + 2 + n + 1
    theta = u * (each * t + once)
    off = u * (each * age + once * size) / (1 - theta)
    rows = C.mT[0, :, None]
    assert theta < 1
    assert ((y.mT[0] - (rows * h).sum(-1)).abs() <= (rows.abs() * off).sum(-1)).all()
    assert ((last[0] - h[-1]).abs() <= off[-1]).all()


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    claims = claims_of(plain.selective_scan)
    assert claims is not None
    subject = TorchSubject("ours", plain.selective_scan, claims, keywords(SELECTIVE_SCAN))
    found = examine(SELECTIVE_SCAN, subject, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}


@pytest.mark.parametrize(("t", "chunk", "channels"), [(1, 32, 32), (7, 4, 2), (8, 4, 1), (5, 8, 4)])
def test_triton_in_chunks_and_blocks_of_channels(
    t: int, chunk: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, state and gradients in float32, within the derived bound: chunks and blocks, whole and in part."""
    module = triton("selective_scan")
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CHANNELS", channels)
    claims = claims_of(module.selective_scan)
    assert claims is not None
    arrays = {name: x.detach().float().numpy() for name, x in arguments(t).items()}
    subject = TorchSubject("triton", module.selective_scan, claims, keywords(SELECTIVE_SCAN))
    trial = Trial(SELECTIVE_SCAN, subject, Case("float32", arrays, "ordinary", t))
    trial.agree()
    trial.agree_in_gradients()
    assert 0 < trial.headroom < 1


def test_triton_without_d_and_state() -> None:
    kernel = triton("selective_scan").selective_scan
    arrays = {n: x.detach().float().numpy() for n, x in arguments(4).items() if n not in ("D", "state")}
    claims = claims_of(kernel)
    assert claims is not None
    subject = TorchSubject("triton", kernel, claims, keywords(SELECTIVE_SCAN))
    trial = Trial(SELECTIVE_SCAN, subject, Case("float32", arrays, "ordinary", 4))
    trial.agree()
    trial.agree_in_gradients()


def test_triton_refuses_what_it_cannot_do() -> None:
    module = triton("selective_scan")
    given = {n: x.detach() for n, x in arguments(3).items()}
    with pytest.raises(NotImplementedError, match="float32"):
        module.selective_scan(**given)
    with pytest.raises(ValueError, match="delta must have the shape"):
        module.selective_scan(**{n: x.float() for n, x in given.items()} | {"delta": torch.ones(1, 1, 1)})


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_triton_kernel_keeps_what_it_claims(dtype: str) -> None:
    """In the interpreter, where there is no GPU."""
    module = triton("selective_scan")
    claims = claims_of(module.selective_scan)
    assert claims is not None
    subject = TorchSubject("triton", module.selective_scan, claims, keywords(SELECTIVE_SCAN))
    found = examine(SELECTIVE_SCAN, subject, dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
