"""`assay.conformance`: the contract of an operator as pytest items in the user's own test file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.impl.kernel import Claims, claims_of
from assay.properties.contract import Operator


@dataclass
class Conformance:
    """One kernel and what was found of it, by dtype: the first item of a dtype judges, the others read."""

    operator: Operator
    kernel: Callable[..., Any]
    claims: Claims
    examples: int
    found: dict[str, Any] = field(default_factory=dict)

    def result(self, name: str, dtype: str) -> Any:
        from assay.kernels import keywords
        from assay.properties.judgement import Effort, examine
        from assay.runner import TorchSubject

        if dtype not in self.found:
            title = getattr(self.kernel, "__name__", "kernel")
            subject = TorchSubject(title, self.kernel, self.claims, keywords(self.operator))
            conventions = dict(self.claims.conventions)
            effort = Effort(examples=self.examples, shrink_seconds=3)
            self.found[dtype] = examine(self.operator, subject, dtype, conventions=conventions, effort=effort)
        return next(r for r in self.found[dtype].results if r.property == name)


def conformance(
    operator: str | Operator,
    kernel: Callable[..., Any],
    *,
    dtypes: Sequence[str] = ("float32",),
    form: str | None = None,
    precision: str | None = None,
    conventions: Mapping[str, str] | None = None,
    examples: int = 64,
    xfail: Mapping[tuple[str, str] | tuple[str, str, str], str] | None = None,
) -> Callable[..., None]:
    """A test function with one item per property and dtype; bind it to a name that begins with `test_`.

    `xfail` maps (property, dtype), or (property, dtype, a text that its diagnosis or message must contain), to
    a reason. An expected failure that passes, or fails otherwise, fails.

    Raises: KeyError for an operator that assay does not know; ValueError for an xfail line that matches no item.

    >>> test_my_rope = conformance("rope", lambda x, position: x, dtypes=["float32"])
    """
    import pytest

    from assay.properties import OPERATORS
    from assay.properties.robustness import checks

    contract = OPERATORS[operator] if isinstance(operator, str) else operator
    own = claims_of(kernel)
    claims = Claims(
        contract.name,
        form=form or (own.form if own else None),
        precision=precision or (own.precision if own else None),
        conventions=dict(conventions or (own.conventions if own else {})),
        backward=own.backward if own else "autograd",
    )
    subject = Conformance(contract, kernel, claims, examples)
    names = [c.name for c in checks(contract)]
    expected = dict(xfail or {})
    for key in expected:
        if key[0] not in names or key[1] not in dtypes:
            raise ValueError(
                f"xfail {key} matches no item: properties are {', '.join(names)}; dtypes {', '.join(dtypes)}"
            )
    items = [pytest.param(name, dtype, id=f"{name}-{dtype}") for dtype in dtypes for name in names]

    @pytest.mark.parametrize(("assay_property", "assay_dtype"), items)
    def test(assay_property: str, assay_dtype: str) -> None:
        __tracebackhide__ = True
        result = subject.result(assay_property, assay_dtype)
        told = "\n".join([result.message, *(f"diagnosis: {f.text}" for f in result.diagnosis)])
        if result.counterexample:
            told += f"\nin {result.counterexample}"
        reason = _expected(expected, assay_property, assay_dtype, told)
        if result.verdict == "skipped":
            pytest.skip(result.message)
        elif result.verdict != "pass" and reason is not None:
            pytest.xfail(reason)
        elif result.verdict != "pass":
            pytest.fail(told, pytrace=False)
        elif any(key[:2] == (assay_property, assay_dtype) for key in expected):
            pytest.fail("this was expected to fail and passes: remove its line from xfail", pytrace=False)

    return test


def _expected(expected: Mapping[Any, str], name: str, dtype: str, told: str) -> str | None:
    for key, reason in expected.items():
        if key[:2] == (name, dtype) and (len(key) == 2 or key[2] in told):
            return reason
    return None
