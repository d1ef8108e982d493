"""`assay.conformance`: the contract of an operator as pytest items in the user's own test file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.impl.kernel import Claims, claims_of
from assay.properties.contract import Operator


if TYPE_CHECKING:
    import pytest

    from assay.kernels import Known
    from assay.properties.results import Examination


@dataclass
class Conformance:
    """One kernel and what was found of it, by dtype: the first item of a dtype judges, the others read."""

    operator: Operator
    kernel: Callable[..., Any]
    claims: Claims
    examples: int
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> Known:
        """The kernel as the command line would know it."""
        from assay.kernels import Known, importable
        from assay.questions import signature

        title = getattr(self.kernel, "__name__", "kernel")
        place = importable(self.kernel, self.operator)
        return Known(title, self.operator, self.claims, place, self.kernel, signature(self.kernel))

    def result(self, name: str, dtype: str) -> Any:
        if dtype not in self.found:
            self.found[dtype] = self._judged(dtype)
        return next(r for r in self.found[dtype].results if r.property == name)

    def _judged(self, dtype: str) -> Examination:
        """A judgement, which begins with the examples in the database of Hypothesis's settings."""
        from hypothesis import settings

        from assay.examples import Examples, read
        from assay.process import Limits
        from assay.properties.judgement import examine
        from assay.properties.run import Effort

        known = self.known
        examples = Examples(settings().database, warnings.warn)
        examples.fetch([(known, dtype)])
        found = examine(
            self.operator,
            known.subject(limits=Limits() if self.claims.world > 1 else None),
            dtype,
            conventions=dict(self.claims.conventions),
            effort=Effort(examples=self.examples, shrink_seconds=3),
            examples=[*map(read, examples.of(known, dtype))],
        )
        examples.save(known, found)
        return found

    def replay(self, dtype: str, result: Any, folder: Path) -> str:
        """Store the counterexample of a failure; the line that tells how to run it again."""
        from assay.replay import command, store_all

        if result.case is None:
            return ""
        known = self.known
        reason = store_all(known, replace(self.found[dtype], results=[result]), folder)
        named = "" if known.place else " --kernel OPERATOR=MODULE:FUNCTION"
        return f"\n{reason}" if reason else f"\nreplay: {command(result)}{named}"


def conformance(
    operator: str | Operator,
    kernel: Callable[..., Any],
    *,
    dtypes: Sequence[str] = ("float32",),
    form: str | None = None,
    precision: str | None = None,
    conventions: Mapping[str, str] | None = None,
    examples: int = 48,
    xfail: Mapping[tuple[str, str] | tuple[str, str, str], str] | None = None,
) -> Callable[..., None]:
    """A test function with one item per property and dtype; bind it to a name that begins with `test_`.

    `xfail` maps (property, dtype), or (property, dtype, a text that its diagnosis or message must contain), to
    a reason. An expected failure that passes, or fails otherwise, fails.

    Raises: KeyError for an operator that assay does not know; ValueError for an xfail line that matches no item.

    >>> test_my_rope = conformance("rope", lambda x, position: x, dtypes=["float32"])
    """
    import pytest

    from assay.expected import Expected, told
    from assay.properties import OPERATORS
    from assay.properties.robustness import checks

    contract = OPERATORS[operator] if isinstance(operator, str) else operator
    own = claims_of(kernel)
    claims = replace(own or Claims(contract.name), operator=contract.name)
    given: dict[str, Any] = {"form": form, "precision": precision, "conventions": dict(conventions or {})}
    claims = replace(claims, **{name: value for name, value in given.items() if value})
    subject = Conformance(contract, kernel, claims, examples)
    names = [c.name for c in checks(contract)]
    expected = [Expected(key[0], key[1], "".join(key[2:]), reason) for key, reason in (xfail or {}).items()]
    for key in xfail or {}:
        if key[0] not in names or key[1] not in dtypes:
            raise ValueError(
                f"xfail {key} matches no item: properties are {', '.join(names)}; dtypes {', '.join(dtypes)}"
            )
    items = [pytest.param(name, dtype, id=f"{name}-{dtype}") for dtype in dtypes for name in names]

    @pytest.mark.parametrize(("assay_property", "assay_dtype"), items)
    def test(pytestconfig: pytest.Config, assay_property: str, assay_dtype: str) -> None:
        __tracebackhide__ = True
        result = subject.result(assay_property, assay_dtype)
        reason = next((e.reason for e in expected if e.meets(assay_dtype, result)), None)
        if result.verdict == "skipped":
            pytest.skip(result.message)
        elif result.verdict != "pass" and reason is not None:
            pytest.xfail(reason)
        elif result.verdict != "pass":
            case = f"\nin {result.counterexample}" if result.counterexample else ""
            replay = subject.replay(assay_dtype, result, _folder(pytestconfig))
            pytest.fail(f"{told(result)}{case}{replay}", pytrace=False)
        elif any(e.about(assay_dtype, result) for e in expected):
            pytest.fail("this was expected to fail and passes: remove its line from xfail", pytrace=False)

    return test


def _folder(config: pytest.Config) -> Path:
    """Where counterexamples are stored: as the ini file says, or in the folder from which pytest was started."""
    from assay.replay import FOLDER

    started = config.invocation_params.dir
    chosen = config.getini("assay_counterexamples") if config.pluginmanager.hasplugin("assay") else ""
    if not chosen:
        return FOLDER if started == Path.cwd() else started / FOLDER
    return (config.inipath.parent if config.inipath else started) / str(chosen)
