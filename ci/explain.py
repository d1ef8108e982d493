"""assay list and assay explain: what is known here, and what one operator demands."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from assay.usage import Usage, operators


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List operators: signature, conventions, and the kernels known here."""
    from rich.text import Text

    from assay import report
    from assay.kernels import known_kernels
    from assay.progress import waiting
    from assay.properties import OPERATORS

    with waiting("looking for kernels"):
        found, left_out = known_kernels()
    rows: list[dict[str, Any]] = [
        {
            "operator": o.name,
            "signature": _signature(o.definition),
            "conventions": {name: list(values) for name, values in o.conventions.items()},
            "forms": list(o.texts),
            "kernels": [k.spelling for k in found if k.operator.name == o.name],
        }
        for o in OPERATORS.values()
    ]
    if as_json:
        click.echo(json.dumps({"operators": rows, "left_out": left_out}, indent=1))
        return
    console = report.console()
    for row in rows:
        console.print(Text(f"{row['operator']}{row['signature']}", style="bold"))
        for name, values in OPERATORS[row["operator"]].conventions.items():
            console.print(f"  convention {name}: {', '.join(values)}")
        console.print(f"  forms: {', '.join(row['forms'])}")
        for kernel in row["kernels"]:
            console.print(f"  kernel {kernel}", markup=False)
    report.print_left_out(console, left_out)


@click.command()
@click.argument("operator", shell_complete=operators)
def explain(operator: str) -> None:
    """Explain OPERATOR: formula, axes, conventions, forms, properties, source."""
    from assay.kernels import UsageError, operator_named

    try:
        o = operator_named(operator)
    except UsageError as error:
        raise Usage(str(error)) from None
    lines = [f"{o.name}{_signature(o.definition)}", ""]
    module = inspect.getmodule(o.definition)
    for text in (module and inspect.getdoc(module), inspect.getdoc(o.definition)):
        lines += [*(text or "").splitlines(), ""]
    sections = {
        "Inputs": [_input(i) for i in o.inputs],
        "Parameters": [f"{p.name} = {_number(p.default)}, judged from {p.low:g} to {p.high:g}" for p in o.parameters],
        "Conventions (the first is the default)": [f"{n}: {', '.join(values)}" for n, values in o.conventions.items()],
        "Settings": [", ".join(f"{n}={value}" for n, value in setting.items()) for setting in o.settings],
        "Forms": [f"{name}: {_first_line(text)}" for name, text in o.texts.items()],
        "Properties": [f"{p.name}: {p.law}" for p in o.properties],
        "Source": [o.source] if o.source else [],
    }
    for title, section in sections.items():
        lines += [f"{title}:", *(f"  {line}" for line in section), ""] if section else []
    click.echo("\n".join(lines).rstrip())


def _input(item: Any) -> str:
    """An input with its axes: `x[b, t]`."""
    from assay.properties.contract import Size

    if isinstance(item, Size):
        return f"{item.name}, the length of {item.axes}"
    return f"{item.name}[{', '.join(item.axes.split())}]" + (" complex" if getattr(item, "complex", False) else "")


def _signature(function: Any) -> str:
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(function).parameters.values()
        if p.name != "xp"  # the arithmetic, which is no business of a caller
    ]
    return str(inspect.Signature(parameters))


def _number(value: float | None) -> str:
    return "(depends on the sizes)" if value is None else f"{value:g}"


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
