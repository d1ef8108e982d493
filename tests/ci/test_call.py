"""One call of a kernel: what it gets, what may come back, and what it cannot hide."""

from __future__ import annotations

import ctypes
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from assay.impl.kernel import Claims
from assay.lines import LONGEST, one_line, shortened, type_name
from assay.properties.trial import Answer, KernelError, NotCovered
from assay.runner import TorchSubject


X = np.arange(6, dtype=np.float32).reshape(2, 3) + 1


def call(
    function: Callable[..., Any], x: Any = X, gradients: bool = False, backward: Any = "autograd", **named: Any
) -> Answer:
    subject = TorchSubject("kernel", function, Claims("own", backward=backward), frozenset({"scale", "pair"}))
    return subject({"x": x, **named}, [2 * np.ones_like(x)] if gradients else None, ("x",) if gradients else ())


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.bool_])
def test_arrays_come_back_in_their_dtype(dtype: Any) -> None:
    (found,) = call(lambda x: x.clone(), X.astype(dtype)).outputs
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), X.astype(dtype).tolist())


def test_a_tensor_lies_in_memory_as_the_array_does() -> None:
    seen: list[Any] = []

    def kernel(x: torch.Tensor) -> torch.Tensor:
        seen.append((x.stride(), x.storage_offset(), x.data_ptr() % 64, x._is_view(), x.is_leaf))
        return x * 1

    wide = np.zeros((2, 7), np.float32)
    call(kernel, wide[:, 1::2])
    call(kernel, np.broadcast_to(np.float32(3), (2, 3)))
    call(kernel, X[:0])
    assert seen[0] == ((7, 2), 1, 4, False, True)
    assert seen[1][0] == (0, 0)


def test_negative_strides_are_refused_in_one_line() -> None:
    with pytest.raises(KernelError, match="torch has no negative strides"):
        call(lambda x: x, X[::-1])


def test_keywords_that_it_takes_are_passed() -> None:
    seen = []

    def kernel(x: torch.Tensor, *, scale: float, pair: tuple[int, ...]) -> torch.Tensor:
        seen.append((scale, pair))
        return x * scale

    assert call(kernel, scale=2.0, pair=(1, 2)).outputs[0].tolist() == (2 * X).tolist()
    call(lambda own_name: own_name * 1, scale=2.0, pair=(1, 2))
    assert seen == [(2.0, (1, 2))]


def test_gradients_through_autograd_and_as_written() -> None:
    assert call(lambda x: x * x, gradients=True).gradients["x"].tolist() == (4 * X).tolist()
    written = call(lambda x: x.detach() * 3, gradients=True, backward=lambda c, x: c * x * 5)
    assert written.gradients["x"].tolist() == (10 * X).tolist()
    assert "x" not in call(lambda x: torch.ones(2, 3, requires_grad=True) + 1, gradients=True).gradients
    with pytest.raises(KernelError, match="does not require grad"):
        call(lambda x: x.detach(), gradients=True)


def test_what_it_does_to_memory_is_seen() -> None:
    def beside(x: torch.Tensor, at: int) -> torch.Tensor:
        ctypes.memset(x.data_ptr() + at, 1, 1)
        return x * 1

    assert call(lambda x: x.mul_(2)).touched == ("x",)
    assert call(lambda x: x * 2).touched == ()
    for at in (-1, X.nbytes):
        found = call(lambda x, at=at: beside(x, at))
        assert (found.touched, found.trespassed) == ((), ("x",))
    in_a_gap = call(lambda x: beside(x, 4), np.zeros((2, 7), np.float32)[:, 1::2])
    assert (in_a_gap.touched, in_a_gap.trespassed) == ((), ("x",))


def test_a_read_beside_an_array_is_nan() -> None:
    x = np.zeros((2, 7), np.float32)[:, ::2]
    assert not np.isnan(call(lambda x: x.as_strided((2, 4), (7, 2)) * 1, x).outputs[0]).any()
    assert np.isnan(call(lambda x: x.as_strided((2, 4), (7, 1)) * 1, x).outputs[0]).any()


def test_outputs_in_the_memory_of_an_input_are_told() -> None:
    assert call(lambda x: x).aliased == ("x",)
    assert call(lambda x: x[:1]).aliased == ("x",)
    assert call(lambda x: x + 0).aliased == ()


class Lazy(torch.Tensor):
    """A subclass, which could put off its work until someone looks."""


class Dlpack:
    def __init__(self, of: torch.Tensor) -> None:
        self.of = of

    def __dlpack__(self, **options: Any) -> Any:
        return self.of.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.of.__dlpack_device__()


def released(x: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(0)
    return x


def test_what_may_be_returned() -> None:
    pair = namedtuple("pair", "a b")
    for several in (lambda x: (x, x), lambda x: [x, x], lambda x: pair(x, x), lambda x: (x.numpy(), x)):
        assert len(call(several).outputs) == 2
    assert call(lambda x: Dlpack(x + 1)).outputs[0].tolist() == (X + 1).tolist()
    assert call(lambda x: torch.complex(x, x).conj()).outputs[0].tolist() == (X - 1j * X).tolist()
    assert call(lambda x: x.sum()).outputs[0].shape == ()
    assert call(lambda x: x[:, :0]).outputs[0].shape == (2, 0)
    assert call(lambda x: x[:1].expand(4, 3)).outputs[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: (x + 1).as_subclass(Lazy), "it returns Lazy, which is neither"),
        (lambda x: torch.nn.Parameter(x + 1), "it returns Parameter"),
        (lambda x: None, "it returns NoneType"),
        (lambda x: 3.0, "it returns float"),
        (lambda x: x.to_sparse(), "layout torch.sparse_coo"),
        (lambda x: torch.empty(2, 3, device="meta"), "a tensor on meta instead of cpu"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), "a tensor of torch.quint8"),
        (lambda x: released(x + 1), "a tensor without memory of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_may_not_be_returned(returned: Callable[..., Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        call(returned)


def raising(error: Any) -> Callable[..., Any]:
    def kernel(x: torch.Tensor) -> torch.Tensor:
        raise error

    return kernel


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Text(str):
    def __getitem__(self, at: Any) -> str:
        raise SystemExit(0)

    def split(self, *_: Any) -> Any:  # type: ignore[override]
        raise SystemExit(0)


class Sly(Exception):
    def __str__(self) -> str:
        return Text("a\nb\x1b[2J" + "c" * 10**6)


class Named(type):
    __name__ = property(lambda cls: 1 / 0)  # type: ignore[assignment]


class Nameless(Exception, metaclass=Named):
    pass


def test_exceptions_are_one_line() -> None:
    for error, message in (
        (RuntimeError("the device\nis on fire"), "RuntimeError: the device is on fire"),
        (Hostile(), "Hostile: (its message cannot be printed)"),
        (SystemExit(0), "SystemExit: 0"),
        (GeneratorExit(), "GeneratorExit"),
        (Nameless("x"), "Nameless: x"),
    ):
        with pytest.raises(KernelError) as found:
            call(raising(error))
        assert str(found.value) == message
    line = one_line(Sly())
    assert line.startswith("a b?[2Jccc")
    assert len(line) == LONGEST
    assert type(line) is str
    assert type_name(Nameless()) == "Nameless"
    assert shortened("\ud800\u202e") == "??"


def test_a_refusal_is_no_error_and_an_interrupt_is_the_users() -> None:
    with pytest.raises(NotCovered, match="only even d"):
        call(raising(NotImplementedError("only even d")))
    with pytest.raises(KeyboardInterrupt):
        call(raising(KeyboardInterrupt()))


def test_a_mode_that_is_not_there() -> None:
    subject = TorchSubject("kernel", lambda x: x, Claims("own"), frozenset())
    with pytest.raises(ValueError, match="there is no mode 'upside down'"):
        subject({"x": X}, None, (), "upside down")
