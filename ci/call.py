"""One call of a kernel: arrays in raw memory, tensors over them, and what it returns as raw memory again.

The same text runs in the process of the judge and in the worker's. It knows no operator, no oracle and no seed: a
question names arrays by how they lie in memory, and a reply names those that were returned.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from assay.buffers import ALIGNED, DTYPES, GUARD, Arena, contiguous, spans
from assay.lines import name_of, one_line, type_name
from assay.modes import MODES, as_compiled, dirty
from assay.questions import EARLIER, ITSELF, TWIN, Passed, Question, Reply


TORCH: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}
_NAMES = {dtype: name for name, dtype in TORCH.items()}

KEPT = 16
"""Tensors that are passed again."""


Returned = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


def ask(
    function: Callable[..., Any], backward: object, question: Question, arena: Arena, device: str = "cpu"
) -> tuple[Reply, BaseException | None]:
    """Run a kernel. Whatever it raises is part of the reply, and is returned beside it.

    `backward`: "autograd", or the function that computes gradients from cotangents and arguments.
    """
    try:
        arguments = {**question.positional, **question.named}
        arrays = {n: v for n, v in arguments.items() if isinstance(v, Passed)}
        held = question.cotangents is None
        tensors = {n: (_held if held else tensor)(p, arena, device) for n, p in arrays.items()}
        positional = {n: tensors.get(n, v) for n, v in question.positional.items()}
        # Of a kernel that makes arrays of its own, the dtype is torch's.
        named = {n: tensors.get(n, TORCH[v] if n == "dtype" else v) for n, v in question.named.items()}
        cotangents = None if question.cotangents is None else [tensor(c, arena, device) for c in question.cotangents]
        dirty(tensors.values())
        as_compiled()
        random = torch.get_rng_state()
        outputs, gradients = _run(function, backward, positional, named, cotangents, question, device)
        drew = not torch.equal(random, torch.get_rng_state())
        for name, passed in arrays.items():
            _returned_to(arena, passed, tensors[name])
        aliased = [n for n, t in tensors.items() if t.numel() and any(map(_lies_in(t), outputs))]
        aliased += _among_themselves([o for o in outputs if not any(_lies_in(t)(o) for t in tensors.values())])
        at, end = question.room
        stored = []
        for one in (*outputs, *gradients.values()):
            stored.append(_stored(one, at, end, arena))
            at = stored[-1].at + -(-stored[-1].where.reach // ALIGNED) * ALIGNED
        found = dict(zip(gradients, stored[len(outputs) :], strict=True))
        return Reply(stored[: len(outputs)], found, aliased, drew), None
    except NotImplementedError as refusal:
        return Reply(refused=one_line(refusal) or "not implemented"), refusal
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the kernel's
        text = one_line(error)
        return Reply(raised=f"{type_name(error)}: {text}" if text else type_name(error)), error


def _run(
    function: Callable[..., Any],
    backward: object,
    positional: Mapping[str, Any],
    named: Mapping[str, Any],
    cotangents: Sequence[torch.Tensor] | None,
    question: Question,
    device: str,
) -> Returned:
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(cotangents is not None))
        called = MODES[question.mode](function, stack)
        if cotangents is None:
            outputs = _outputs(called(*positional.values(), **named), device)
            _finish(device)
            return outputs, {}
        named = {**named, **{n: _variable(v, positional, device) for n, v in named.items() if n in question.by}}
        leaves = [{**positional, **named}[name].requires_grad_() for name in question.by]
        outputs = _outputs(called(*positional.values(), **named), device)
        cotangents = [c.to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]  # an output may be wider
        if callable(backward):
            found = _outputs(backward(*cotangents, *positional.values(), **named), device)
        else:
            found = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)
        gradients = {n: g for n, g in zip(question.by, found, strict=True) if g is not None}
        _finish(device)
        return outputs, gradients


def _variable(value: Any, positional: Mapping[str, Any], device: str) -> torch.Tensor:
    """A parameter whose gradient is asked, as a tensor without axes, in float32 at least."""
    if isinstance(value, torch.Tensor):
        return value
    tensors = [x for x in positional.values() if isinstance(x, torch.Tensor)]
    floating = [x.dtype.to_real() for x in tensors if x.is_floating_point() or x.is_complex()]
    return torch.tensor(value, dtype=torch.promote_types(floating[0], torch.float32), device=device)


# Tensors --------------------------------------------------------------------------------------------------------------


def tensor(passed: Passed, arena: Arena, device: str = "cpu") -> torch.Tensor:
    """A tensor over an array in the arena, with its strides and its offset into its buffer.

    On another device it lies in a copy of its whole region, guards included.
    """
    where, dtype = passed.where, TORCH[passed.where.dtype]
    if not where.count:
        return torch.empty(where.shape, dtype=dtype, device=device)
    if min(where.strides, default=0) < 0:
        raise ValueError("torch has no negative strides")
    if any(stride % where.width for stride in where.strides):
        raise ValueError("torch counts strides in whole elements")
    strides = tuple(stride // where.width for stride in where.strides)
    if torch.device(device).type == "cpu":
        ahead = where.offset % where.width
        begin, count = passed.at + GUARD + ahead, (where.size - ahead) // where.width
        memory = torch.frombuffer(arena.memory, dtype=dtype, count=count, offset=begin)
        offset = where.offset - ahead
    else:
        memory = torch.empty(where.reach, dtype=torch.uint8, device=device)
        for part, there in _parts(passed, arena, memory):
            there.copy_(part)
        offset = GUARD + where.offset
    # Not a view of another tensor: a kernel may ask, and autograd treats views differently.
    return torch.empty(0, dtype=dtype, device=device).set_(
        memory.untyped_storage(), offset // where.width, where.shape, strides
    )


_HELD: OrderedDict[Any, torch.Tensor] = OrderedDict()


def _held(passed: Passed, arena: Arena, device: str) -> torch.Tensor:
    """The very object that an earlier call was given, if the array lies where that one lay.

    A kernel that takes it for an old question by its identity is found out.
    """
    if torch.device(device).type != "cpu":
        return tensor(passed, arena, device)
    made, key = tensor(passed, arena, device), (id(arena), passed)
    old = _HELD.pop(key, made)
    facts = [(t.shape, t.stride(), t.data_ptr(), t.requires_grad, t.dtype) for t in (made, old)]
    _HELD[key] = old if facts[0] == facts[1] else made
    if len(_HELD) > KEPT:
        _HELD.popitem(last=False)
    return _HELD[key]


def _returned_to(arena: Arena, passed: Passed, tensor: torch.Tensor) -> None:
    """What a call left in the memory of an argument, for whoever looks at the arena."""
    if tensor.device.type != "cpu" and passed.where.count:
        memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
        for part, there in _parts(passed, arena, memory):
            part.copy_(there)


def _parts(passed: Passed, arena: Arena, memory: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Those parts of a region in which anything lies, here and on the device."""
    for start, stop in spans(passed.where):
        here = torch.frombuffer(arena.memory, dtype=torch.uint8, count=stop - start, offset=passed.at + start)
        yield here, memory[start:stop]


def _outputs(returned: Any, device: str) -> tuple[torch.Tensor, ...]:
    """What a kernel returned, each a plain tensor with memory of its own on the device. Raises: TypeError."""
    outputs = returned if isinstance(returned, tuple | list) else (returned,)
    return tuple(_plain(o, device) for o in outputs)


def _plain(output: Any, device: str) -> torch.Tensor:
    if not isinstance(output, torch.Tensor) and hasattr(type(output), "__dlpack__"):
        output = torch.utils.dlpack.from_dlpack(output)
    if type(output) is not torch.Tensor:
        raise TypeError(f"it returns {name_of(type(output))}, which is neither a plain torch.Tensor nor has DLPack")
    if output.layout is not torch.strided:
        raise TypeError(f"it returns a tensor of layout {output.layout}")
    if output.device.type != torch.device(device).type:
        raise TypeError(f"it returns a tensor on {output.device} instead of {device}")
    if output.dtype not in _NAMES:
        raise TypeError(f"it returns a tensor of {output.dtype}")
    last = sum((n - 1) * s for n, s in zip(output.shape, output.stride(), strict=True))
    needed = (output.storage_offset() + last + 1) * output.element_size()
    if output.numel() and (not output.data_ptr() or output.untyped_storage().nbytes() < needed):
        raise TypeError("it returns a tensor without memory of its own")
    return output


def _stored(output: torch.Tensor, at: int, end: int, arena: Arena) -> Passed:
    """Copy a tensor into the arena."""
    where = contiguous(_NAMES[output.dtype], tuple(output.shape))
    if at + where.reach > end:
        raise MemoryError(f"it returns {where.size:,} bytes, for which there is no room")
    if where.count:
        memory = torch.frombuffer(arena.memory, dtype=output.dtype, count=where.count, offset=at + GUARD)
        with torch.no_grad():
            memory.view(where.shape).copy_(output.detach())
    return Passed(where, at)


def _lies_in(tensor: torch.Tensor) -> Callable[[torch.Tensor], bool]:
    storage = tensor.untyped_storage().data_ptr()
    return lambda output: bool(output.numel()) and output.untyped_storage().data_ptr() == storage


_EARLIER: deque[torch.Tensor] = deque(maxlen=8)
"""Outputs of earlier calls, held so that their memory is not handed out again."""


def _among_themselves(outputs: Sequence[torch.Tensor]) -> list[str]:
    """Do outputs share memory with each other, with those of earlier calls, or within themselves?"""
    storages = [o.untyped_storage().data_ptr() for o in outputs if o.numel()]
    found = []
    if len(set(storages)) < len(storages):
        found.append(TWIN)
    if any(map(storages.__contains__, (o.untyped_storage().data_ptr() for o in _EARLIER if o.numel()))):
        found.append(EARLIER)
    if any(n > 1 and s == 0 for o in outputs if o.numel() for n, s in zip(o.shape, o.stride(), strict=True)):
        found.append(ITSELF)
    _EARLIER.extend(o.detach() for o in outputs)
    return found


def _finish(device: str) -> None:
    """Wait for whatever the device still does: its errors belong to this call."""
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()
