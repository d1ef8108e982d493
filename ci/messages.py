"""What the judge and a worker say to each other: JSON, each message after its length. Arrays stay in the arena.

A reply is read as a stranger wrote it: whatever does not fit the question is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.buffers import Arena, Layout, Misfit, contiguous
from assay.lines import shortened
from assay.questions import SHARED, Passed, Question, Reply


LONGEST = 1 << 16
"""Bytes of a question, which is sent at once and never waits for the worker to read."""
LONGEST_REPLY = 1 << 24
"""Of a reply: the judge reads while it comes. A module may have loaded thousands of files."""
MOST = 64
"""Arrays that a kernel may return."""

_LENGTH = struct.Struct("<I")


def framed(content: Mapping[str, Any], longest: int = LONGEST) -> bytes:
    text = json.dumps(content).encode()
    if len(text) > longest:
        raise ValueError(f"a message of {len(text):,} bytes is longer than {longest:,}")
    return _LENGTH.pack(len(text)) + text


def unframed(received: bytearray) -> dict[str, Any] | None:
    """Take the first message out of what was received; None if it is not all there yet. Raises: Misfit."""
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > LONGEST_REPLY:
        raise Misfit("a message is too long")
    if len(received) < _LENGTH.size + length:
        return None
    text = bytes(received[_LENGTH.size : _LENGTH.size + length])
    del received[: _LENGTH.size + length]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Misfit("a message is not JSON") from None
    if not isinstance(content, dict):
        raise Misfit("a message is not an object")
    return content


# Questions ------------------------------------------------------------------------------------------------------------


def asked(question: Question) -> dict[str, Any]:
    return {
        "positional": {n: _value(v) for n, v in question.positional.items()},
        "named": {n: _value(v) for n, v in question.named.items()},
        "cotangents": None if question.cotangents is None else [_value(c) for c in question.cotangents],
        "by": list(question.by),
        "room": list(question.room),
        "mode": question.mode,
    }


def question(content: Mapping[str, Any]) -> Question:
    cotangents = content["cotangents"]
    return Question(
        positional={n: _restored(v) for n, v in content["positional"].items()},
        named={n: _restored(v) for n, v in content["named"].items()},
        cotangents=None if cotangents is None else [_restored(c) for c in cotangents],
        by=content["by"],
        room=tuple(content["room"]),
        mode=content["mode"],
    )


def _value(value: Any) -> Any:
    """JSON has no tuples, and no arrays."""
    if isinstance(value, Passed):
        w = value.where
        return {"array": [value.at, w.dtype, w.shape, w.strides, w.offset, w.size]}
    if isinstance(value, np.generic):
        return _value(value.item())
    if isinstance(value, tuple):
        return {"tuple": [_value(v) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an argument of type {type(value).__name__} cannot be passed to a kernel")


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(map(_restored, value["tuple"]))
    at, dtype, shape, strides, offset, size = value["array"]
    return Passed(Layout(dtype, tuple(shape), tuple(strides), offset, size), at)


# Replies --------------------------------------------------------------------------------------------------------------


def replied(reply: Reply) -> dict[str, Any]:
    def returned(passed: Passed) -> list[Any]:
        return [passed.at, passed.where.dtype, list(passed.where.shape)]

    return {
        "outputs": [returned(o) for o in reply.outputs],
        "gradients": {n: returned(g) for n, g in reply.gradients.items()},
        "aliased": list(reply.aliased),
        "drew": reply.drew,
        "refused": reply.refused,
        "raised": reply.raised,
    }


def reply(content: Mapping[str, Any], question: Question, arena: Arena) -> Reply:
    """Raises: Misfit for whatever is no reply to this question."""
    outputs, gradients, aliased = (content.get(key) for key in ("outputs", "gradients", "aliased"))
    if not (isinstance(outputs, list) and isinstance(gradients, dict) and isinstance(aliased, list)):
        raise Misfit("a reply has outputs, gradients and aliased inputs")
    if len(outputs) > MOST or not set(gradients) <= set(question.by):
        raise Misfit("a reply has more arrays than were asked for")
    known = {*question.positional, *question.named, *SHARED}
    return Reply(
        outputs=[_returned(o, question, arena) for o in outputs],
        gradients={n: _returned(g, question, arena) for n, g in gradients.items()},
        aliased=[n for n in aliased if isinstance(n, str) and n in known],
        drew=bool(content.get("drew")),
        refused=_text(content.get("refused")),
        raised=_text(content.get("raised")),
    )


def _returned(told: Any, question: Question, arena: Arena) -> Passed:
    if not (isinstance(told, list) and len(told) == 3):
        raise Misfit("an array is told by its place, its dtype and its shape")
    at, dtype, shape = told
    if type(at) is not int or not isinstance(dtype, str) or not isinstance(shape, Sequence):
        raise Misfit("an array is told by its place, its dtype and its shape")
    where = contiguous(dtype, shape)
    if not question.room[0] <= at <= at + where.reach <= question.room[1]:
        raise Misfit("an array must lie in the room that is there for it")
    arena.region(at, where)
    return Passed(where, at)


def _text(told: Any) -> str | None:
    if told is not None and not isinstance(told, str):
        raise Misfit("a message must be a text")
    return None if told is None else shortened(told)
