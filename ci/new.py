"""assay new: a file to start from, made from the contract of an operator, or for an operator of one's own."""

from __future__ import annotations

import inspect
import keyword
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.usage import WRITTEN, Usage, operators, writing


if TYPE_CHECKING:
    from assay.properties.contract import Operator


@click.command()
@click.argument("operator", required=False, shell_complete=operators)
@click.option("--operator", "own", metavar="NAME", help="A file for an operator of your own, of this name, instead.")
@click.option("--file", "path", help="The file to write; my_OPERATOR.py, if not given.", **WRITTEN)
def new(operator: str | None, own: str | None, path: Path | None) -> None:
    """Write a file to start from: a kernel of OPERATOR with its arguments, claims and comments, and no body.

    A file that exists is never overwritten.
    """
    if (operator is None) == (own is None):
        raise Usage("name an operator, assay new OPERATOR, or one of your own, assay new --operator NAME")
    path = path or Path(f"my_{operator or own}.py")
    if path.suffix != ".py" or not path.name.isprintable():
        raise Usage(f"{path} is not the name of a Python file: it must end with .py")
    text = kernel_file(operator, path) if operator is not None else operator_file(str(own), path)
    with writing(path):
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise Usage(f"{path} exists already: name another with --file") from None
    click.echo(f"{path} is there to be written on; then: assay check {shlex.quote(str(path))} --quick")


def kernel_file(name: str, path: Path) -> str:
    """The text of a file with a kernel that has no body yet. Raises: Usage for an operator that is not known."""
    from assay.kernels import UsageError, operator_named

    try:
        operator = operator_named(name)
    except UsageError as error:
        raise Usage(str(error)) from None
    about = (inspect.getdoc(operator.definition) or "").partition("\n\n")[0]
    lines = [
        f"# A kernel of {name}. Write its body, or have it call the kernel that is to be judged; then",
        "#",
        *_commands(
            {
                f"check {shlex.quote(path.name)} --quick": "is it right? Without --quick, more cases",
                f"identify {shlex.quote(path.name)}": "which convention, form and precision does it follow?",
                f"explain {name}": "the formula, the axes, the conventions, the forms",
            }
        ),
        "#",
        "# It receives torch tensors and returns them. A keyword with a default may be left out of the signature: then",
        "# the kernel is judged at that default, and the keyword is told as not covered. What the kernel does not",
        "# support, it refuses with NotImplementedError: that is not covered either, and no failure.",
        "",
        "import assay",
        "",
        "",
        *_claims(operator),
        f"def {name}(",
        *(f"    {line}" for line in _parameters(operator)),
        "):",
        *(f"    {line}" for line in _docstring(about)),
        '    raise NotImplementedError("this kernel is still to be written")',
    ]
    return "\n".join([*lines, ""])


def _commands(about: Mapping[str, str]) -> list[str]:
    width = max(map(len, about))
    return [f"#     assay {command:{width}}   {told}" for command, told in about.items()]


def _claims(operator: Operator) -> Iterator[str]:
    """The decorator: what the kernel says of itself, and in comments what else it could say."""
    from assay.impl.kernel import FLOATING
    from assay.properties.drawing import COMPLEX

    dtypes = tuple(d for d in FLOATING if d in COMPLEX) if operator.complex else FLOATING
    yield "@assay.kernel("
    yield f'    "{operator.name}",'
    yield f"    dtypes=({', '.join(map(_text, dtypes))}{',' * (len(dtypes) == 1)}),  # those that it supports"
    yield "    # What is not claimed is inferred, or judged by what is usual:"
    if len(operator.texts) > 1:
        told = f"form={_text(next(iter(operator.texts)))},  # {_either(tuple(operator.texts))}"
        yield from textwrap.wrap(
            told, 110, initial_indent="    # ", subsequent_indent="    #     ", break_on_hyphens=False
        )
    if operator.conventions:
        first = ", ".join(f"{_text(name)}: {_text(values[0])}" for name, values in operator.conventions.items())
        yield "    # Conventions, where it has no keyword to choose:"
        yield f"    # conventions={{{first}}},"
    if operator.differentiated:
        yield '    # backward="none",  # it has no gradients, or else a function (*cotangents, *arguments) -> gradients'
    yield '    # requires=("package",),  # what it needs beside torch, as pip names it'
    yield ")"


def _parameters(operator: Operator) -> Iterator[str]:
    """The arguments, one on each line, with what they are."""
    from assay.properties.contract import Integers, Size

    inputs = {i.name: i for i in operator.inputs}
    reals = {p.name: p for p in operator.parameters}
    keywords = False
    for p in inspect.signature(operator.definition).parameters.values():
        if p.name == "xp":  # the arithmetic, which is no business of a kernel
            continue
        if p.kind is p.KEYWORD_ONLY and not keywords:
            keywords = True
            yield "*,"
        default, about = p.default, ""
        if p.name in reals:
            real = reals[p.name]
            default = float(default) if isinstance(default, int) else default
            about = f"a number{' or None' * (default is None)}, judged from {real.low:g} to {real.high:g}"
        elif p.name in operator.conventions:
            about = _either(operator.conventions[p.name])
        elif isinstance(item := inputs.get(p.name), Size):
            about = f"the length of {item.axes}"
        elif item is not None:
            about = f"[{', '.join(item.axes.split())}]"
            about += " of integers" if isinstance(item, Integers) else ""
            about += " of complex numbers" if getattr(item, "complex", False) else ""
            about += f", of even {' and '.join(even.split())}" if (even := getattr(item, "even", "")) else ""
            about += ", or None" if getattr(item, "optional", False) else ""
        needed = p.kind is p.KEYWORD_ONLY and default is p.empty
        about = ", ".join(filter(None, (about, "cannot be left out" if needed else "")))
        given = p.name if default is p.empty else f"{p.name}={_text(default)}"
        yield f"{given},  # {about}" if about else f"{given},"


def _docstring(text: str) -> Iterator[str]:
    """Lines that are short enough with the quotes and four spaces around them."""
    first, *more = textwrap.wrap(text.replace("\\", r"\\"), 110) or [""]
    yield f'"""{first}' if more else f'"""{first}"""'
    yield from more
    if more:
        yield '"""'


def _either(values: Sequence[str]) -> str:
    *most, last = map(_text, values)
    return f"{', '.join(most)} or {last}" if most else last


def _text(value: Any) -> str:
    """As it is written in a file; a text in the quotes of this project."""
    return f'"{value}"' if isinstance(value, str) and value.isprintable() and not {*value} & {*'"\\'} else repr(value)


def operator_file(name: str, path: Path) -> str:
    """The text of a file with an operator that is judged already, and a kernel of it that has no body yet.

    Raises: Usage for a name that cannot be one, or is that of an operator of assay.
    """
    from assay.properties import OPERATORS

    if not name.isidentifier() or keyword.iskeyword(name) or name in TAKEN:
        raise Usage(f"{name!r} cannot be the name of an operator: it is a Python name, for instance rms_norm")
    if name in OPERATORS:
        raise Usage(f"assay knows {name} already: assay new {name} writes a kernel of it")
    names = {"NAME": name, "FILE": shlex.quote(path.name)}
    return re.sub("NAME|FILE", lambda found: names[found[0]], OWN)


TAKEN = ("assay", "kernel", "OPERATOR")
"""What the file calls something else."""

OWN = '''\
# The operator NAME, and a kernel of it. The formula is an example: put yours in its place; then
#
#     assay check FILE --quick    is the kernel right? Without --quick, more cases
#     assay mutants FILE          which wrong kernels would be rejected, derived from the formula?

import assay


# What is true. It is written once, against the Python array API, as plainly as can be: the same text gives the exact
# answer, the bound of error, the gradients and the diagnosis. Constants are integers, since 0.1 is not the number that
# it spells; branches are taken on sizes and texts, never on computed numbers.
def NAME(x, weight, *, eps):
    """y[t, d] of x[t, d] and weight[d]."""
    xp = assay.array_namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


OPERATOR = assay.Operator(
    "NAME",
    NAME,
    # Arrays in the order of the arguments, a letter for each axis. There are assay.Integers too, such as positions.
    inputs=(assay.Tensor("x", "t d"), assay.Tensor("weight", "d")),
    # Keywords that are numbers, with the range to judge them in. There is assay.Real too, which may be negative.
    parameters=(assay.Positive("eps", default=1e-6, low=1e-6, high=1e-2),),
    # What may be left out:
    # conventions={"order": ("before", "after")},  # keywords on which right kernels differ, the default first
    # forms={"plain": NAME, "other": other},  # equal texts with other roundings: kernels may follow any
    # slips={"eps_forgotten": forgotten},  # mistakes by name: what a kernel that makes one computes
    # properties=(assay.Property("name", "law", residual),),  # what else holds: residual(trial) is 0
)


@assay.kernel("NAME", dtypes=("float32", "bfloat16", "float16"))
def kernel(x, weight, *, eps=1e-6):
    """What is judged: torch tensors in, torch tensors out."""
    raise NotImplementedError("this kernel is still to be written")
'''
