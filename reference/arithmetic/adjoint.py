"""Reverse differentiation over any arithmetic: exact gradients over balls, gradient bounds over running error.

A definition runs as usual and leaves a tape; `gradients` walks it backwards. Every rule is written in the arithmetic
below, so over Ball the gradient is an enclosure, and over Bounded it is charged the roundings of a kernel that
differentiates the same text step by step.

Subgradients at kinks are conventions: |x| has slope 0 at 0; maximum and minimum give ties to the first operand;
`max` over an axis is a shift and lets no derivative through; floor and ceil are constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from assay.reference.arithmetic.array import Arithmetic, Array, Mask, Part


Rule = Callable[[Array], Array]
"""A cotangent of the output, turned into one of an operand."""


class Node(Array):
    """An array of the arithmetic below, and where it came from."""

    __slots__ = ("sources", "step", "value")

    def __init__(self, xp: Adjoint, value: Array, sources: tuple[tuple[Node, Rule], ...] = (), step: str = "") -> None:
        super().__init__(xp, value.parts)
        self.value = value
        self.sources = sources
        self.step = step
        """The name of the operation; empty where numbers were only moved."""


class Adjoint(Arithmetic):
    """The arithmetic of `below`, recording. `variable` marks what to differentiate by."""

    __name__ = "assay.adjoint"

    def __init__(self, below: Arithmetic) -> None:
        self.below = below

    @contextmanager
    def context(self) -> Iterator[None]:
        with self.below.context():
            yield

    def lift(self, values: Part) -> Node:
        return Node(self, self.below.lift(values))

    def variable(self, value: Array) -> Node:
        """A value to differentiate by: its tape starts here."""
        return Node(self, value, sources=((_ROOT, lambda g: g),))

    def constant(self, value: Array) -> Node:
        return Node(self, value)

    def record(self, value: Array, *sources: tuple[Node, Rule], step: str = "") -> Node:
        """A new node; operands that depend on no variable are forgotten."""
        return Node(self, value, tuple(s for s in sources if s[0].sources), step)

    def unary(self, name: str, x: Array) -> Node:
        x = self._node(x)
        v = x.value
        xp = v.xp
        out = xp.unary(name, v)
        zero = xp.zeros(())

        rules: dict[str, Rule] = {
            "negative": lambda g: -g,
            "abs": lambda g: xp.chosen(v, zero, xp.chosen(zero, v, _nothing(g), g), -g),
            "sqrt": lambda g: g / (2 * out),
            "exp": lambda g: g * out,
            "expm1": lambda g: g * xp.exp(v),
            "log": lambda g: g / v,
            "log1p": lambda g: g / (1 + v),
            "sin": lambda g: g * xp.cos(v),
            "cos": lambda g: -(g * xp.sin(v)),
            "tanh": lambda g: g * (1 - out * out),
        }
        return self.record(out, *([(x, rules[name])] if name in rules else []), step=name)

    def binary(self, name: str, x: Array, y: Array) -> Node:
        x, y = self._node(x), self._node(y)
        a, b = x.value, y.value
        out = a.xp.binary(name, a, b)
        xp = out.xp
        rules: dict[str, tuple[Rule, Rule]] = {
            "add": (lambda g: g, lambda g: g),
            "subtract": (lambda g: g, lambda g: -g),
            "multiply": (lambda g: g * b, lambda g: g * a),
            # The quotient is divided again before or after it meets g: what may underflow is not the same.
            "divide": (lambda g: g / b, lambda g: -xp.either([lambda: g * out / b, lambda: g * (out / b)])),
            "pow": (lambda g: g * b * a ** (b - 1), lambda g: g * out * xp.log(a)),
            "maximum": (lambda g: xp.chosen(a, b, g, _nothing(g)), lambda g: xp.chosen(a, b, _nothing(g), g)),
            "minimum": (lambda g: xp.chosen(b, a, g, _nothing(g)), lambda g: xp.chosen(b, a, _nothing(g), g)),
        }
        left, right = rules[name]
        return self.record(out, (x, _unbroadcast(left, a.shape)), (y, _unbroadcast(right, b.shape)), step=name)

    def total(self, x: Array) -> Node:
        x = self._node(x)
        shape = x.shape
        return self.record(
            x.value.xp.total(x.value),
            (x, lambda g: g.xp.broadcast_to(g.xp.expand_dims(g, axis=-1), shape)),
            step=f"total {shape[-1]}",
        )

    def matmul(self, x: Array, y: Array) -> Node:
        """One step, so that the contractions of its gradient are contractions to the arithmetic below as well."""
        x, y = self._node(x), self._node(y)
        a, b = x.value, y.value
        return self.record(
            a.xp.matmul(a, b),
            (x, _unbroadcast(lambda g: g @ b.mT, a.shape)),
            (y, _unbroadcast(lambda g: a.mT @ g, b.shape)),
            step=f"matmul {a.shape[-1]}",
        )

    @property
    def inf(self) -> Node:
        return self.constant(self.below.inf)

    @property
    def pi(self) -> Node:
        return self.constant(self.below.pi)

    def parameter(self, value: float) -> Node:
        return self.constant(self.below.parameter(value))

    def wrap(self, x: Array) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.wrap(x.value), (x, lambda g: g))

    def peak(self, x: Array) -> Node:
        return self.constant(self._node(x).value.xp.peak(self._node(x).value))

    def compare(self, name: str, x: Array, y: Array) -> Mask:
        a, b = self._node(x).value, self._node(y).value
        return a.xp.compare(name, a, b)

    def store(self, x: Array, kind: str) -> Node:
        x = self._node(x)
        # A cast is differentiated as a cast: the cotangent of what is stored is stored in the same format.
        return self.record(x.value.xp.store(x.value, kind), (x, lambda g: g.xp.store(g, kind)), step=f"store {kind}")

    def widen(self, x: Array, form: str) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.widen(x.value, form), (x, lambda g: g.xp.narrow(g)))

    def scaled(self, x: Array) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.scaled(x.value), (x, lambda g: g.xp.scaled(g)))

    def exactly(self, x: Array, value: Array) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.exactly(x.value, self._node(value).value), (x, lambda g: g))

    def vanishes(self, x: Array) -> Mask:
        value = self._node(x).value
        return value.xp.vanishes(value)

    def either(self, ways: Sequence[Callable[[], Array]]) -> Node:
        """Differentiated as the first way is."""
        return self._first(self.below.either, ways)

    def mixed(self, ways: Sequence[Callable[[], Array]]) -> Node:
        """Differentiated as the first way is."""
        return self._first(self.below.mixed, ways)

    def _first(self, of: Callable[[list[Callable[[], Array]]], Array], ways: Sequence[Callable[[], Array]]) -> Node:
        found: list[Node] = []

        def run(way: Callable[[], Array]) -> Array:
            found.append(self._node(way()))
            return found[-1].value

        value = of([partial(run, way) for way in ways])
        return self.record(value, (found[0], lambda g: g))

    def narrow(self, x: Array) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.narrow(x.value), (x, lambda g: g), step="narrow")

    def astype(self, x: Array, dtype: object, *, copy: bool = True) -> Node:
        x = self._node(x)
        return self.record(x.value.xp.astype(x.value, dtype), (x, lambda g: g))

    def rearrange(self, function: Callable[..., Part], *arrays: Any) -> Any:
        if isinstance(arrays[0], Mask):
            return super().rearrange(function, *arrays)
        nodes = [self._node(a) for a in arrays]
        out = self.below.rearrange(function, *(n.value for n in nodes))
        if not any(n.sources for n in nodes):
            return self.constant(out)
        # The same rearrangement of running numbers says where each element of the output came from.
        starts = np.cumsum([0, *(n.size for n in nodes)])
        origin = np.asarray(
            function(*(np.arange(n.size).reshape(n.shape) + s for n, s in zip(nodes, starts[:-1], strict=True)))
        )
        if len(nodes) == 1:
            return self.record(out, (nodes[0], _gathered(origin, nodes[0].shape)))
        return self.record(
            out,
            *(
                (n, _gathered(np.where((origin >= s) & (origin < s + n.size), origin - s, -1), n.shape))
                for n, s in zip(nodes, starts[:-1], strict=True)
                if n.sources
            ),
        )

    def where(self, condition: Mask, x: Any, y: Any) -> Array:
        x, y = self.asarray(x), self.asarray(y)
        shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
        return super().where(condition, self.broadcast_to(x, shape), self.broadcast_to(y, shape))

    def _node(self, x: Array) -> Node:
        return x if isinstance(x, Node) else self.constant(x)

    def gradients(self, pulled: Sequence[tuple[Node, Array]], variables: Sequence[Node]) -> list[Array]:
        """The vector-Jacobian product: sum over outputs of cotangent times d output / d variable, per variable.

        `pulled`: the outputs with their cotangents, which are pulled back together, as backward passes do.
        """
        wanted = {id(v) for v in variables}
        order = ordered(*(output for output, _ in pulled))
        found = {id(node): g for node, g in self.sweep(order, *pulled) if id(node) in wanted}
        return [found[id(v)] if id(v) in found else self.below.zeros(v.shape) for v in variables]

    def sweep(self, order: Sequence[Node], *pulled: tuple[Node, Array]) -> Iterator[tuple[Node, Array]]:
        """Each node that the outputs depend on, last first, with its cotangent. `order`: those nodes, operands first;
        `pulled`: the outputs with theirs. Where several steps take a node, their shares of it add up in any order."""
        pending: dict[int, list[Array]] = {}
        for output, cotangent in pulled:
            pending.setdefault(id(output), []).append(cotangent)
        for node in reversed(order):
            shares = pending.pop(id(node), None)
            if shares is None:
                continue
            g = shares[0]
            if len(shares) == 2:
                g = g + shares[1]
            elif len(shares) > 2:
                g = g.xp.sum(g.xp.stack(shares, axis=-1), axis=-1)
            yield node, g
            for source, rule in node.sources:
                if source is not _ROOT:
                    pending.setdefault(id(source), []).append(rule(g))


def _nothing(g: Array) -> Array:
    """What passes to the operand that was not chosen."""
    return g.xp.zeros(g.shape)


def ordered(*outputs: Node) -> list[Node]:
    """Every node that the outputs depend on, operands first."""
    seen: set[int] = set()
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(output, False) for output in outputs]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((s, False) for s, _ in node.sources if s is not _ROOT)
    return order


def _unbroadcast(rule: Rule, shape: tuple[int, ...]) -> Rule:
    """The rule of an operand of `shape` that was broadcast: its cotangents are summed."""

    def summed(g: Array) -> Array:
        share = rule(g)
        if share.shape == shape:
            return share
        if not shape:
            return share.xp.sum(share)
        origin = np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), share.shape)
        return _gathered(origin, shape)(share)

    return summed


def _gathered(origin: Part, shape: tuple[int, ...]) -> Rule:
    """The transpose of a rearrangement: element k of the operand receives all cotangents whose origin is k."""

    def rule(g: Array) -> Array:
        xp = g.xp
        flat, size = origin.ravel(), math.prod(shape)
        places = np.flatnonzero(flat >= 0)
        places = places[np.argsort(flat[places], kind="stable")]
        counts = np.bincount(flat[places], minlength=size)
        line = xp.reshape(g, (-1,))
        if places.size == size and (counts == 1).all():  # every element went to one place
            return xp.reshape(xp.take(line, places, axis=0), shape)
        # Row k lists where element k went; the last place of the cotangent, a zero, fills the rows up.
        width = int(counts.max(initial=0))
        table = np.full((size, max(width, 1)), flat.size)
        within = np.arange(places.size) - np.repeat(np.cumsum(counts) - counts, counts)
        table[flat[places], within] = places
        rows = xp.take(line if (table < flat.size).all() else xp.concat([line, xp.zeros((1,))]), table, axis=0)
        return xp.reshape(rows[:, 0] if width <= 1 else xp.sum(rows, axis=-1), shape)

    return rule


_ROOT: Any = object()
"""Stands at the start of a variable's tape, so that a node with sources depends on a variable."""
