"""Galleries of one crop an identity, drawn at random: what is to be expected of a query, or what some draws give.

One of the query's positives is drawn, and one crop of every other identity. An identity of which a of n crops stand
above that positive stands above it with probability a/n, independently of the others. So the number of identities
above is a sum of independent yes-or-no draws, and the distribution of such a sum can be computed: no gallery has to be
drawn. (Li et al., "DeepReID", CVPR 2014, drew galleries; torchreid draws ten, without a seed.)

With chances p₁, p₂, … of the identities to stand above it, the mean rank of a positive is 1 + Σ pᵢ, and the mean of one
divided by the rank is ∫₀¹ Π (1 − pᵢ + pᵢ t) dt: the integrand is the mean of t to the power of the number above, and
that of tⁿ is 1 / (n + 1). Gauss-Legendre quadrature computes the integral.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from entire_id.evaluation.arrays import Float64Array, FloatArray, Int64Array
from entire_id.evaluation.counting import Counts, Tie
from entire_id.evaluation.labels import PairIndex
from entire_id.records import DISTRACTOR_PID

__all__ = ["Draws", "Identities", "draw_galleries"]


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What the draws give for each of b queries; NaN where there is no positive.

    Attributes:
        precision: (b,) mean of one divided by the rank of the positive: AP and INP alike.
        rank: (b,) mean rank.
        hits: (b, max_rank) share of draws in which it is at rank ≤ 1, 2, …
        spread: (b,) precision if every tie fell for the model, less that if every tie fell against it.
    """

    precision: Float64Array
    rank: Float64Array
    hits: Float64Array
    spread: Float64Array


class Identities:
    """The identities of a gallery by number, and how many crops of each a query searches.

    Attributes:
        index: which crops a query ignores.
        numbers: (g,) int64 of each gallery crop; each distractor without a label is somebody of its own.
    """

    def __init__(self, index: PairIndex) -> None:
        self.index = index
        pids = index.labels.gallery_pids.copy()
        distractors = np.flatnonzero(pids == DISTRACTOR_PID)
        pids[distractors] = pids.max() + 1 + np.arange(len(distractors))
        self.numbers = np.unique(pids, return_inverse=True)[1]
        self._kept: dict[int, Int64Array] = {}

    def num_crops(self, query: int) -> Int64Array:
        """Return how many crops of each identity other than its own the query searches."""
        groups = self.index.groups
        group = 0 if groups is None else int(groups[0][query])
        if group not in self._kept:
            kept = np.ones(len(self.numbers), bool) if groups is None else groups[1] == group
            kept[self.index.junk] = False
            self._kept[group] = np.bincount(self.numbers[kept], minlength=int(self.numbers.max()) + 1)
        return self._kept[group]


def draw_galleries(
    block: FloatArray, first: int, counts: Counts, identities: Identities, tie: Tie, max_rank: int
) -> Draws:
    """Return what the draws of the protocol give for the queries from `first` on.

    Args:
        block: (b, g) scores of negatives, else -inf.
        first: number of the query of its first row.
        counts: of the same queries.
        identities: of the gallery.
        tie: where a positive stands among negatives of its score.
        max_rank: length of the curves.
    """
    protocol = identities.index.protocol
    draws = Draws(*(np.full(shape, np.nan) for shape in (len(block), len(block), (len(block), max_rank), len(block))))
    for row in np.flatnonzero(counts.num_positives).tolist():
        own = slice(counts.starts[row], counts.starts[row] + counts.num_positives[row])
        positives = counts.scores[own], counts.columns[own]

        def expect(rule: Tie, row: int = row, positives: tuple[FloatArray, Int64Array] = positives) -> Float64Array:
            return _chances(block[row], *positives, identities, first + row, rule)

        chances = expect(tie)
        if protocol.repeats:
            rng = np.random.default_rng([protocol.seed, first + row])
            ranks = _drawn_ranks(chances, protocol.repeats, rng)
            draws.precision[row], draws.rank[row] = (1 / ranks).mean(), ranks.mean()
            draws.hits[row] = (ranks[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0)
        else:
            draws.precision[row], draws.rank[row] = _expected_precision(chances), 1 + chances.sum(axis=1).mean()
            draws.hits[row] = _expected_hits(chances, max_rank)
        draws.spread[row] = 0
        if (counts.at_least[own] > counts.above[own]).any():
            draws.spread[row] = _expected_precision(expect("best")) - _expected_precision(expect("worst"))
    return draws


def _chances(
    row: FloatArray, scores: FloatArray, columns: Int64Array, identities: Identities, query: int, tie: Tie
) -> Float64Array:
    """Return (positives, identities) the chance that the drawn crop of an identity stands above a positive.

    Identities that never do are left out.
    """
    reaching = np.flatnonzero(row >= scores[-1])
    ascending = scores[::-1]
    num_beaten = np.searchsorted(ascending, row[reaching], "right" if tie == "worst" else "left")
    if tie == "stable":  # beats the positives of its score that come later in the gallery
        for number in np.flatnonzero(np.isin(row[reaching], scores)).tolist():
            tied = scores == row[reaching[number]]
            num_beaten[number] += np.count_nonzero(columns[tied] > reaching[number])
    above, place = np.unique(identities.numbers[reaching], return_inverse=True)
    num_places = len(scores) + 1
    counts = np.bincount(place * num_places + num_beaten, minlength=len(above) * num_places)
    num_above = np.cumsum(counts.reshape(len(above), num_places)[:, :0:-1], axis=1)
    chances: Float64Array = (num_above / identities.num_crops(query)[above, None]).T
    return chances


def _expected_precision(chances: Float64Array) -> float:
    """Return the mean of one divided by the rank of the drawn positive.

    Half as many nodes as factors give the integral exactly, and far fewer give all digits: beyond 1 the integrand stays
    below exp((t - 1) Σ pᵢ), so that with n nodes the error is about exp(-4 n² / Σ pᵢ) (Trefethen, "Is Gauss Quadrature
    Better than Clenshaw-Curtis?", SIAM Review 2008, theorem 4.5, with the best ellipse).
    """
    num_identities = chances.shape[1]
    needed = min(num_identities // 2 + 1, 24 + 4 * math.sqrt(chances.sum(axis=1).max(initial=0)))
    shortfalls, weights = _nodes(math.ceil(needed / 16) * 16)
    products = np.ones((len(chances), len(weights)))
    for chance in chances.T[:, :, None]:
        products -= products * shortfalls * chance
    return float((products @ weights).mean())


@cache
def _nodes(number: int) -> tuple[Float64Array, Float64Array]:
    """Return 1 - t at the nodes t of Gauss-Legendre quadrature over 0..1, and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(number)
    return (1 - nodes) / 2, weights / 2


def _expected_hits(chances: Float64Array, max_rank: int) -> Float64Array:
    """Return (max_rank,) the probability that the drawn positive is at rank ≤ 1, 2, …."""
    at_rank = np.zeros((len(chances), max_rank))
    at_rank[:, 0] = 1
    for chance in chances.T[:, :, None]:  # one more identity is above, or is not
        moved = at_rank * chance
        at_rank -= moved
        at_rank[:, 1:] += moved[:, :-1]
    hits: Float64Array = np.cumsum(at_rank.mean(axis=0))
    return hits


def _drawn_ranks(chances: Float64Array, repeats: int, rng: np.random.Generator) -> Int64Array:
    """Return (repeats,) the ranks of drawn positives."""
    drawn = chances[rng.integers(0, len(chances), repeats)]
    ranks: Int64Array = 1 + (rng.random(drawn.shape) < drawn).sum(axis=1)
    return ranks
