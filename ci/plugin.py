"""The pytest plugin: `pytest --assay OPERATOR=MODULE:FUNCTION` judges a kernel without a test file.

Loaded whenever pytest starts: nothing but the standard library and pytest is imported here.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("assay")
    group.addoption(
        "--assay",
        action="append",
        default=[],
        metavar="OPERATOR=MODULE:FUNCTION",
        help="Judge this kernel: one test item per property and dtype. Repeatable.",
    )
    group.addoption("--assay-dtype", default="float32", metavar="LIST", help="Comma-separated dtypes for --assay.")
    parser.addini("assay_counterexamples", "Store counterexamples in this folder, seen from the ini file.", default="")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("assay"):
        return
    own = str(Path(__file__).with_name("asked.py"))
    # Without paths of the user's own, only what --assay names is judged.
    given = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else []
    config.args[:] = [*given, own]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if file_path == Path(__file__).with_name("asked.py") and parent.config.getoption("assay"):
        return Asked.from_parent(parent, path=file_path)
    return None


class Asked(pytest.Module):
    """The kernels named on the command line, as a module of tests."""

    def _getobj(self) -> object:
        from types import ModuleType

        from assay.conformance import conformance
        from assay.kernels import UsageError, resolve

        module = ModuleType("asked")
        dtypes = [d.strip() for d in self.config.getoption("assay_dtype").split(",")]
        try:
            kernels = [k for spelling in self.config.getoption("assay") for k in resolve(spelling)]
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        for number, kernel in enumerate(kernels):
            name = "".join(c if c.isalnum() else "_" for c in kernel.name)
            claims = kernel.claims
            assert kernel.function is not None
            test = conformance(
                kernel.operator,
                kernel.function,
                dtypes=dtypes,
                form=claims.form,
                precision=claims.precision,
                conventions=claims.conventions,
            )
            setattr(module, f"test_{number}_{name}", test)
        return module
