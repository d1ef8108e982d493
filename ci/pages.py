"""A page for each operator: what its contract says, a case with its exact answer, who follows which convention, and the
kernels with their verdicts.

It depends on the contract, on the claims of kernels, and on the record of verdicts, not on what is installed here.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from assay.explain import Entries, sections, signature, texts
from assay.judged import Record
from assay.kernels import MODULES, Known, kernels_in
from assay.markdown import code, escaped, prose, table
from assay.properties import OPERATORS
from assay.properties.contract import Definition, Integers, Operator, Size, Tensor
from assay.properties.drawing import COMPLEX, DTYPES
from assay.properties.truth import bound_of
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.oracle import OWN, evaluate, oracle
from assay.reference.arithmetic.precision import FORMATS, natural
from assay.report import number


GENERATED = "<!-- Written by `python -m assay.docs` from the contract and from judged.json: change those. -->\n"
DIGITS = 15
"""Shown of an exact figure."""
PICTURES = {
    "hippo_project": "A signal, and what 8, 32 and 64 coefficients of LegS remember of it",
    "linear_attention": "Causal, one head of 64 channels, two threads: time and peak memory over the length, and peers",
}
"""Of operators that have one, in docs/ under their names."""
CERTAIN = 2.0**-54
"""Of itself: within so much each figure is known, and less where it is zero. Its digits are right, but for the last."""
LENGTH = 3
"""Of what is made from a length alone."""


def operator_page(operator: Operator, record: Sequence[Record]) -> str:
    said = dict(sections(operator))
    parts = [
        f"# {operator.name}\n",
        GENERATED,
        "\n".join(["```python", *_broken(signature(operator)), "```\n"]),
        *map(prose, texts(operator)),
        *_section("Inputs", ("input", ""), said.get("Inputs", ())),
        *_section("Parameters", ("parameter", "default; judged"), said.get("Parameters", ())),
        *_conventions(operator),
        *_section("Settings in which it is judged", ("setting", ""), said.get("Settings", ())),
        *_forms(operator, said),
        *_properties(said),
        *_mistakes(operator),
        *_worked(operator),
        *([f"![{PICTURES[operator.name]}](../{operator.name}.svg)\n"] if operator.name in PICTURES else []),
        *_work(operator),
        *_kernels(operator, [r for r in record if r.operator == operator.name]),
        *([f"## Source\n\n{escaped(operator.source)}\n"] if operator.source else []),
    ]
    return "\n".join(parts)


def contents(record: Sequence[Record]) -> str:
    """The page that leads to those of the operators."""
    rows = []
    for name, operator in OPERATORS.items():
        here = {r.kernel for r in record if r.operator == name}
        failing = {r.kernel for r in record if r.operator == name and r.verdict != "pass"}
        about = " ".join(texts(operator)[0].partition("\n\n")[0].split())
        rows.append((f"[{name}]({name}.md)", escaped(about), str(len(here)), str(len(here - failing))))
    head = ("operator", "", "kernels judged", "pass in every dtype")
    return f"# Operators\n\n{GENERATED}\n{table(head, rows)}"


def _section(title: str, head: Sequence[str], entries: Entries) -> list[str]:
    """A table of names and what is said of each; without the second column where nothing is said of any."""
    if not entries:
        return []
    wide = any(text for _, text in entries)
    rows = [(code(name), escaped(text))[: 1 + wide] for name, text in entries]
    return [f"## {title}\n\n{table(head[: 1 + wide], rows)}"]


def _broken(call: str) -> list[str]:
    """A call, with each argument on a line of its own if it is long."""
    if len(call) <= 100:
        return [call]
    name, _, arguments = call.partition("(")
    return [f"{name}(", *(f"    {a}," for a in re.split(r", (?![^(]*\))", arguments.removesuffix(")"))), ")"]


def _conventions(operator: Operator) -> list[str]:
    """Which values there are, and which kernels follow which."""
    if not operator.conventions:
        return []
    known = [k for k in claimed() if k.operator.name == operator.name]
    rows = [
        (code(f"{name}={value}"), ", ".join(code(k.name) for k in known if k.claims.conventions.get(name) == value))
        for name, values in operator.conventions.items()
        for value in values
    ]
    asked = [
        k for k in known if any(k.signature.supports(n) for n in {*operator.conventions} - {*k.claims.conventions})
    ]
    return [
        "## Conventions\n\nOn which honest codebases differ: each is another function. The first of each is the "
        f"default.\n\n{table(('convention', 'followed, without a choice, by'), rows)}"
        + (f"\nWith a keyword for it: {', '.join(code(k.name) for k in asked)}.\n" if asked else "")
    ]


def _forms(operator: Operator, said: Mapping[str, Entries]) -> list[str]:
    if operator.random:
        return []
    about = (
        "Texts of the same function, equal in exact arithmetic, with other roundings. A kernel that claims none is\n"
    )
    about += "judged by the loosest.\n"
    return [f"## Forms\n\n{about}\n{table(('form', ''), [(code(n), escaped(t)) for n, t in said['Forms']])}"]


def _properties(said: Mapping[str, Entries]) -> list[str]:
    rows = [(code(name), code(law)) for name, law in said.get("Properties", ())]
    about = "Beside agreement with the exact answer and its gradients, and\n"
    about += "[what every kernel owes](../judgement.md#the-demands).\n"
    return [f"## Properties\n\n{about}\n{table(('property', 'of every right kernel'), rows)}"] if rows else []


def _mistakes(operator: Operator) -> list[str]:
    names = [name.replace("_", " ") for name in operator.slips]
    names += [f"a stray {name.replace('_', ' ')}" for name in operator.strays]
    names += [f"{p.name} doubled, halved, negated, squared, inverted or left out" for p in operator.parameters]
    return ["## Mistakes that it tells by name\n\n" + "; ".join(map(escaped, names)) + ".\n"] if names else []


# A case with its exact answer ----------------------------------------------------------------------------------------


def worked(operator: Operator) -> dict[str, Any]:
    """Small arguments, multiples of a quarter, which every format holds exactly; parameters at their defaults."""
    even = {axis for i in operator.inputs if isinstance(i, Tensor) for axis in i.even.split()}
    arguments: dict[str, Any] = {}
    for place, item in enumerate(operator.inputs):
        shape = tuple(4 if axis in even else 2 for axis in item.axes.split())
        if isinstance(item, Size):
            arguments[item.name] = LENGTH
        elif isinstance(item, Integers):
            arguments[item.name] = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
        elif not item.optional:
            values = _quarters(shape, place)
            arguments[item.name] = values + 1j * _quarters(shape, place + 1) if item.complex else values
    for parameter in operator.parameters:
        arguments[parameter.name] = None if parameter.default is None else float(parameter.default)
    for name, taken in inspect.signature(operator.definition).parameters.items():
        if taken.default is taken.empty and name not in arguments and name != "xp":
            arguments[name] = LENGTH
    return arguments


def _quarters(shape: tuple[int, ...], place: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    count = int(np.prod(shape))
    return (((3 * np.arange(count) + 2 * place + 1) % 7 - 3) / 4).reshape(shape)


def _worked(operator: Operator) -> list[str]:
    if operator.random:
        return []
    arguments = worked(operator)
    near = [paired(o).parts[0] for o in evaluate(operator.definition, OWN, arguments)]
    exact = oracle(operator.definition, arguments, [np.abs(value) * CERTAIN for value in near])
    lines = [f"{name} = {_shown(value)}" for name, value in arguments.items() if value is not None]
    for place, output in enumerate(exact):
        name = "output" if len(exact) == 1 else f"output {place}"
        lines.append(f"{name} = {_shown(output.midpoint)}")
    test = f"tests/reference/test_{operator.definition.__module__.rpartition('.')[2]}.py"
    dtypes = [d for d in DTYPES if d in COMPLEX or not operator.complex]
    rows = [(code(n), *(_bound(text, arguments, d, len(exact)) for d in dtypes)) for n, text in operator.texts.items()]
    return [
        "## A case with its exact answer\n\nComputed by balls: all digits shown are right, but for the last.\n\n"
        + "\n".join(["```text", *lines, "```\n\n"])
        + "How far a right kernel may be off on it, at the element where that is most, for each output, in the\n"
        + f"natural precision of each dtype ([why](../judgement.md#the-bound)):\n\n{table(('form', *dtypes), rows)}\n"
        + f"Figures of the literature are recomputed in [{test}](../../{test}).\n"
    ]


def _bound(text: Definition, arguments: Mapping[str, Any], dtype: str, outputs: int) -> str:
    found = bound_of(text, arguments, natural(dtype).name, [FORMATS[dtype]] * outputs)
    return ", ".join(f"{float(bound.max(initial=0)):.2g}" for bound in found)


def _shown(value: Any) -> str:
    """Numbers in brackets, complex ones as (x+yj)."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, complex | np.complexfloating):
        return f"({value.real:g}{value.imag:+g}j)"
    return f"{float(value):.{DIGITS}g}"


def _work(operator: Operator) -> list[str]:
    """The least that the timed cases take."""
    if operator.work is None or not operator.timed:
        return []
    rows = []
    for name, case in operator.timed.items():
        told = [*(f"{axis} {n}" for axis, n in case.sizes.items()), *(f"{k}={v}" for k, v in case.keywords.items())]
        least = operator.work(**case.sizes, **case.keywords, itemsize=4, backward=False)
        counts = (f"{n:,}" for n in (least.bytes, least.flops, least.exponentials))
        rows.append((code(name), escaped(", ".join(told)), *counts))
    head = ("case", "", "bytes", "flops", "exponentials")
    return [f"## Least work\n\nOf the cases on which kernels are timed: forward, in float32.\n\n{table(head, rows)}"]


# Kernels -------------------------------------------------------------------------------------------------------------


@cache
def claimed() -> tuple[Known, ...]:
    """Every kernel of assay, and of every package for which there is an adapter, installed or not."""
    found: list[Known] = []
    for name in MODULES:
        short = name.removeprefix("assay.impl.").removeprefix("adapters.")
        found += kernels_in(importlib.import_module(name), OPERATORS, name, prefix=short, offered=True)
    return tuple(found)


def _kernels(operator: Operator, record: Sequence[Record]) -> list[str]:
    dtypes = [d for d in DTYPES if d in COMPLEX or not operator.complex]
    found = {(r.kernel, r.dtype): r for r in record}
    rows, without = [], []
    for kernel in claimed():
        if kernel.operator.name != operator.name:
            continue
        own = [found[kernel.name, d] for d in dtypes if (kernel.name, d) in found]
        if not own:
            without.append(code(kernel.name))
            continue
        needs = [f"{p} {own[0].versions.get(p, '')}" for p in kernel.claims.requires] or [""]
        cells = [_verdict(found.get((kernel.name, d)), d in kernel.claims.dtypes) for d in dtypes]
        follows = "; ".join(dict.fromkeys(r.follows for r in own if r.follows))
        fails = ", ".join(dict.fromkeys(code(name) for r in own for name in r.fails))
        rows.append((code(kernel.name), ", ".join(needs), *cells, follows, fails))
    if not rows and not without:
        return []
    text = "By `assay check --quick`; beside a pass stands the headroom, the largest error over the bound. *Follows*:\n"
    text += "the tightest published form and precision that was kept, by dtype. [Why kernels fail](../findings.md).\n\n"
    text += table(("kernel", "of", *dtypes, "follows", "fails"), rows) if rows else ""
    text += f"\nNot judged: {', '.join(without)}.\n" if without else ""
    return [f"## Kernels\n\n{text}"]


def _verdict(record: Record | None, claimed: bool) -> str:
    if record is None:
        return "not judged" if claimed else ""
    if record.verdict != "pass":
        return f"**{record.verdict}**"
    headroom = record.headroom
    return f"pass {number(float(headroom)) if headroom is not None else ''}".strip()
