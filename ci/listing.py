"""assay list and assay explain: what is known here, and what one operator demands."""

from __future__ import annotations

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
    from assay.explain import signature
    from assay.kernels import known_kernels
    from assay.progress import waiting
    from assay.properties import OPERATORS

    with waiting("looking for kernels"):
        found, left_out = known_kernels()
    rows: list[dict[str, Any]] = [
        {
            "operator": o.name,
            "signature": signature(o).removeprefix(o.name),
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
    from assay.explain import explained
    from assay.kernels import UsageError, operator_named

    try:
        o = operator_named(operator)
    except UsageError as error:
        raise Usage(str(error)) from None
    click.echo(explained(o))
