"""The moments of random-feature estimators of the softmax kernel, in closed form.

With r rows w_i, each N(0, I_d) or of length sqrt(d), and z = x + y ("positive", "hyperbolic") or x - y
("trigonometric"), an estimator of exp(<x, y>) is c X with

    X = (1/r) sum_i g(<w_i, z>),    g = exp, cosh, cos,    c = exp(-(|x|^2 + |y|^2) / 2), for cos exp(+(...) / 2)

and depends on x and y through c and |z|^2 alone. Each power of X is a sum of exp(<sum_i n_i w_i, z>) with integers n_i
(imaginary for cos), and with |z|^2 = u, or -u for cos,

    independent rows    E exp(<sum n_i w_i, z>) = prod_i exp(n_i^2 u / 2)
    orthogonal rows     E exp(<sum n_i w_i, z>) = E 0F1(; d/2; |sum n_i w_i|^2 u / 4)
                                                = sum_k (u/2)^k / (d/2)_k [s^k] prod_i (1 - n_i^2 s)^(-d/2)

for lengths that are chi_d; where all are sqrt(d), |sum n_i w_i|^2 = d sum n_i^2. Blocks of d rows are independent, and
the last one may be shorter. The direction of sum n_i w_i is uniform, which gives 0F1; sum n_i^2 chi2_d the series.

Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 2 (independent rows),
theorem 2 (a bound for orthogonal ones, here exact), theorem 1 (lengths sqrt(d)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import mpmath


KINDS = ("positive", "trigonometric", "hyperbolic")
SCALINGS = ("chi", "regularised")

Number = Any


def context(bits: int = 200) -> Any:
    """An mpmath context of one's own: the global one is never touched."""
    mp = mpmath.mp.clone()
    mp.prec = bits
    return mp


@dataclass(frozen=True)
class Estimator:
    """X for one |z|^2 = t."""

    kind: str
    r: int
    d: int
    orthogonal: bool = True
    scaling: str = "chi"

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.scaling not in SCALINGS or min(self.r, self.d) < 1:
            raise ValueError(f"there is no estimator {self}")

    @property
    def blocks(self) -> dict[int, int]:
        """How many blocks there are of each number of rows, all rows of a block being orthogonal."""
        if not self.orthogonal:
            return {1: self.r}
        full, rest = divmod(self.r, self.d)
        return {size: count for size, count in ((self.d, full), (rest, 1)) if size and count}

    def moment(self, p: int, t: Number, mp: Any) -> Number:
        """E X**p. Error: the rounding of the working precision of mp."""
        u = -mp.mpf(t) if self.kind == "trigonometric" else mp.mpf(t)
        total = mp.mpf(0)
        # The p factors of a term of (sum g)**p fall on some rows, several on one; these rows lie in some blocks.
        for factors in _partitions(tuple(range(p))):
            sizes = tuple(len(part) for part in factors)
            for groups in _partitions(sizes):
                ways = _ways(tuple(len(group) for group in groups), tuple(self.blocks.items()))
                if ways:
                    total += ways * mp.fprod(self._together(group, u, mp) for group in groups)
        return total / mp.mpf(self.r) ** p

    def _together(self, powers: Sequence[int], u: Number, mp: Any) -> Number:
        """E prod g(<w_i, z>)**powers[i] over different rows i of one block."""
        total = mp.mpf(0)
        for term in product(*(self._expanded(power, mp) for power in powers)):
            weight = mp.fprod(share for _, share in term)
            total += weight * _exponential(tuple(sorted(n * n for n, _ in term)), self.d, self.scaling, u, mp)
        return total

    def _expanded(self, power: int, mp: Any) -> list[tuple[int, Number]]:
        """g(a)**power as a sum of exp(n a), or exp(i n a) for cos: each n with its share."""
        if self.kind == "positive":
            return [(power, mp.mpf(1))]
        return [(power - 2 * k, mp.binomial(power, k) / 2**power) for k in range(power + 1)]

    def mean(self, t: Number, mp: Any) -> Number:
        return self.moment(1, t, mp)

    def variance(self, t: Number, mp: Any) -> Number:
        return self.moment(2, t, mp) - self.moment(1, t, mp) ** 2

    def spread_of_square(self, t: Number, mp: Any) -> Number:
        """The variance of (X - E X)**2."""
        one, two, three, four = (self.moment(p, t, mp) for p in (1, 2, 3, 4))
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        return fourth - (two - one**2) ** 2


def constant(kind: str, x2: Number, y2: Number, mp: Any) -> Number:
    """c of |x|^2 and |y|^2: the estimate of exp(<x, y>) is c X."""
    half = (mp.mpf(x2) + mp.mpf(y2)) / 2
    return mp.exp(half if kind == "trigonometric" else -half)


@cache
def _exponential(squares: tuple[int, ...], d: int, scaling: str, u: Number, mp: Any) -> Number:
    """E exp(<sum n_i w_i, z>), for |z|^2 = u and the squares of n_i, over rows of one block."""
    if scaling == "regularised":
        return mp.hyp0f1(mp.mpf(d) / 2, d * sum(squares) * u / 4)
    if len(set(squares) - {0}) <= 1:
        # All the same: the series is 1F1(count d/2; d/2; n^2 u/2), and exp(n^2 u/2) for one row.
        count, n2 = sum(1 for s in squares if s), max(squares, default=0)
        # A result that vanishes to the working precision, as for d = 2 and u = -2, is 0.
        return mp.hyp1f1(mp.mpf(count * d) / 2, mp.mpf(d) / 2, n2 * u / 2, zeroprec=mp.prec)
    total, scale, k, largest = mp.mpf(0), mp.mpf(1), 0, mp.mpf(0)
    # With L = prod (1 - n_i^2 s)^(-d/2) = sum a_k s^k, s L' = (d/2) (sum_j p_j s^j) L, p_j = sum_i n_i^(2j).
    a = [mp.mpf(1)]
    while True:
        term = scale * a[k]
        total += term
        largest = max(largest, abs(term))
        # From here on each term is at most half the one before it, so the rest is less than this one.
        if k >= len(squares) * max(squares) * abs(u) and abs(term) <= mp.eps * largest:
            return total
        k += 1
        scale *= u / 2 / (mp.mpf(d) / 2 + k - 1)
        powers = [sum(n**j for n in squares) for j in range(1, k + 1)]
        a.append(mp.mpf(d) / 2 * mp.fsum(powers[j - 1] * a[k - j] for j in range(1, k + 1)) / k)


def _partitions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """The ways to divide items, equal ones told apart, into sets that are not empty."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for found in _partitions(rest):
        yield [(first,), *found]
        for i, part in enumerate(found):
            yield [*found[:i], (first, *part), *found[i + 1 :]]


def _ways(groups: tuple[int, ...], blocks: tuple[tuple[int, int], ...]) -> int:
    """The ways to give each group a block of its own, and the members of a group different rows of that block."""
    if not groups:
        return 1
    total = 0
    for i, (rows, count) in enumerate(blocks):
        left = (*blocks[:i], (rows, count - 1), *blocks[i + 1 :])
        if count:
            total += count * _falling(rows, groups[0]) * _ways(groups[1:], left)
    return total


def _falling(n: int, k: int) -> int:
    """n (n - 1) ... (n - k + 1)."""
    out = 1
    for i in range(k):
        out *= n - i
    return out
