"""The claims of a kernel: which operator it computes, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar


Function = TypeVar("Function", bound=Callable[..., object])
Backward = Literal["autograd", "none"]
Ranks = Literal["sum", "mean"]

UNDER = ("compile", "vmap", "autocast")
FLOATING = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Claims:
    """What a kernel says of itself. Everything but the operator may be left open: the judge then infers it."""

    operator: str
    """The name of an operator, `rope`."""
    form: str | None = None
    """The form that it follows, `table`; None: judged by the loosest published form."""
    precision: str | None = None
    """What it computes in, `float32`; None: the natural precision of the dtype it is given."""
    dtypes: tuple[str, ...] = FLOATING
    """The dtypes of its inputs that it supports."""
    conventions: Mapping[str, str] = field(default_factory=dict)
    """The conventions that it follows where it has no keyword to choose, {"layout": "interleaved"}."""
    backward: Backward | Callable[..., object] = "autograd"
    """How gradients are had: through torch's autograd, from a function (cotangent, *arguments), or not at all."""
    requires: tuple[str, ...] = ()
    """The distributions that it needs beside torch, as pip names them."""
    interpreted: bool = False
    """It is a Triton kernel: without a GPU it runs in the interpreter, slowly."""
    under: tuple[str, ...] = ()
    """What it keeps its bounds under: "compile" (torch.compile), "vmap" (torch.func.vmap), "autocast"."""
    world: int = 1
    """Over so many ranks of torch.distributed (gloo) it is called at once, each with some of the rows."""
    ranks: Ranks = "sum"
    """What the answers of ranks amount to. "sum": each returns the loss of all rows, and gradients that add up to
    those of one process; shards may differ in size. "mean": each has as many rows, and the means of losses and of
    gradients over the ranks are those of one process, as DistributedDataParallel has it."""


def kernel(
    operator: str,
    *,
    form: str | None = None,
    precision: str | None = None,
    dtypes: tuple[str, ...] = FLOATING,
    conventions: Mapping[str, str] | None = None,
    backward: Backward | Callable[..., object] = "autograd",
    requires: tuple[str, ...] = (),
    interpreted: bool = False,
    under: tuple[str, ...] = (),
    world: int = 1,
    ranks: Ranks = "sum",
) -> Callable[[Function], Function]:
    """Attach claims to a function. The function itself is returned, unchanged and callable as before.

    >>> @kernel("rope", conventions={"layout": "half"})
    ... def mine(x, position, *, base=10000.0): ...
    >>> claims_of(mine).conventions
    {'layout': 'half'}

    Raises: ValueError for something in `under` that is not known.
    """
    for name in under:
        if name not in UNDER:
            raise ValueError(f"a kernel cannot be judged under {name!r}; there are {', '.join(UNDER)}")
    claims = Claims(
        operator=operator,
        form=form,
        precision=precision,
        dtypes=tuple(dtypes),
        conventions=dict(conventions or {}),
        backward=backward,
        requires=tuple(requires),
        interpreted=interpreted,
        under=tuple(under),
        world=world,
        ranks=ranks,
    )

    def attach(function: Function) -> Function:
        function.__assay__ = claims  # type: ignore[attr-defined]  # a function has a __dict__ that mypy does not know
        return function

    return attach


def claims_of(function: object) -> Claims | None:
    """The claims that `kernel` attached, or None."""
    claims = getattr(function, "__assay__", None)
    return claims if isinstance(claims, Claims) else None
