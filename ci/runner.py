"""Running a kernel in this process: NumPy arrays in, torch tensors for the kernel, NumPy arrays out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from assay.impl.kernel import Claims
from assay.properties.drawing import DTYPES, Values
from assay.properties.trial import Answer, KernelError, NotCovered
from assay.reference.arithmetic.oracle import Arguments


TORCH = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BITS = {2: (np.int16, torch.int16), 1: (np.int8, torch.int8)}


class TorchSubject:
    """A Python function on torch tensors, as the judge sees it."""

    def __init__(
        self, name: str, function: Callable[..., Any], claims: Claims, known: frozenset[str], *, device: str = "cpu"
    ) -> None:
        self.name = name
        self.function = function
        self.claims = claims
        self.device = device
        self._known = known
        """The keywords of the operator; a kernel need not have all of them."""
        parameters = inspect.signature(function).parameters.values()
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._keywords = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}

    @property
    def form(self) -> str | None:
        return self.claims.form

    @property
    def precision(self) -> str | None:
        return self.claims.precision

    @property
    def differentiable(self) -> bool:
        return self.claims.backward != "none"

    def supports(self, keyword: str) -> bool:
        return self._open or keyword in self._keywords

    def __call__(self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str]) -> Answer:
        passed = {n: _tensor(v, self.device) if isinstance(v, np.ndarray) else v for n, v in arguments.items()}
        before = {n: t.clone() for n, t in passed.items() if isinstance(t, torch.Tensor)}
        try:
            with torch.set_grad_enabled(cotangents is not None):
                outputs, gradients = self._run(passed, cotangents, by)
        except NotImplementedError as refusal:
            raise NotCovered(one_line(refusal) or "not implemented") from None
        except Exception as error:
            raise KernelError(f"{type(error).__name__}: {one_line(error)}") from error
        touched = tuple(n for n, t in before.items() if not _same_bits(passed[n].detach(), t.detach()))
        return Answer(tuple(map(_array, outputs)), {n: _array(g) for n, g in gradients.items()}, touched)

    def _run(
        self, passed: dict[str, Any], cotangents: Sequence[Values] | None, by: Sequence[str]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if cotangents is None:
            return _outputs(self._call(passed)), {}
        floating = [t.dtype for t in passed.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
        wide = torch.promote_types(floating[0], torch.float32)
        for name in by:
            if not isinstance(passed[name], torch.Tensor):  # a parameter
                passed[name] = torch.tensor(passed[name], dtype=wide, device=self.device)
            passed[name].requires_grad_()
        backward = self.claims.backward
        if callable(backward):
            outputs = _outputs(self._call(passed))
            given = self._cotangents(cotangents, outputs)
            found = _outputs(backward(*given, *self._positionals(passed), **self._named(passed)))
            return outputs, dict(zip(by, found, strict=True))
        outputs = _outputs(self._call(passed))
        found = torch.autograd.grad(
            outputs, [passed[n] for n in by], self._cotangents(cotangents, outputs), allow_unused=True
        )
        return outputs, {n: g for n, g in zip(by, found, strict=True) if g is not None}

    def _cotangents(self, cotangents: Sequence[Values], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """In the dtypes of the outputs, which may be wider."""
        return [_tensor(c, self.device).to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]

    def _call(self, passed: dict[str, Any]) -> Any:
        return self.function(*self._positionals(passed), **self._named(passed))

    def _positionals(self, passed: dict[str, Any]) -> list[Any]:
        """The inputs, in the operator's order; a kernel may give them names of its own."""
        return [v for n, v in passed.items() if n not in self._known]

    def _named(self, passed: dict[str, Any]) -> dict[str, Any]:
        return {n: v for n, v in passed.items() if n in self._known and self.supports(n)}


def one_line(error: BaseException) -> str:
    """The message of an exception, however hostile, on one line of bounded length."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be printed)"
    return text if len(text) <= 300 else text[:297] + "..."


def _outputs(returned: Any) -> tuple[torch.Tensor, ...]:
    outputs = returned if isinstance(returned, tuple | list) else (returned,)
    return tuple(o if isinstance(o, torch.Tensor) else torch.utils.dlpack.from_dlpack(o) for o in outputs)


def _tensor(values: Values, device: str) -> torch.Tensor:
    """A fresh tensor with the array's strides and its offset into its buffer, on memory of its own."""
    width = values.dtype.itemsize
    plain = values.dtype in (np.float64, np.float32, np.float16) or values.dtype.kind in "iub"
    source = values if plain else values.view(_BITS[width][0])
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(source.shape, source.strides, strict=True)) // width
    base = values.base if isinstance(values.base, np.ndarray) else values
    before = (values.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // width
    buffer = np.zeros(before + span if source.size else 0, dtype=source.dtype)[before:]
    copy = np.lib.stride_tricks.as_strided(buffer, source.shape, source.strides) if source.size else source.copy()
    copy[...] = source
    tensor = torch.from_numpy(copy)
    if not plain:
        tensor = tensor.view(TORCH[str(values.dtype)])
    return tensor.to(device)


def _array(tensor: torch.Tensor) -> Values:
    tensor = tensor.detach().cpu()
    for name, dtype in TORCH.items():
        if tensor.dtype == dtype and name == "bfloat16":
            return tensor.contiguous().view(torch.int16).numpy().view(DTYPES[name])
    return tensor.numpy()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype.is_floating_point:
        width = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[a.element_size()]
        a, b = a.contiguous().view(width), b.contiguous().view(width)
    return torch.equal(a, b)
