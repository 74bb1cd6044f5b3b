"""Galleries of one crop an identity, drawn at random: what is to be expected of a query, or what some draws give.

One of the query's positives is drawn, and one crop of every other identity. An identity of which a of n crops stand
above that positive stands above it with probability a/n, independently of the others. So the number of identities
above is a sum of independent yes-or-no draws, and the distribution of such a sum can be computed: no gallery has to be
drawn. (Li et al., "DeepReID", CVPR 2014, drew galleries; torchreid draws ten, without a seed.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entire_id.evaluation.arrays import FloatArray
from entire_id.evaluation.counting import Counts, Tie
from entire_id.evaluation.labels import PairIndex

__all__ = ["Draws", "Identities", "draw_galleries"]

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draws:
    """What the draws give for each of b queries; NaN where there is no positive.

    Attributes:
        precision: (b,) mean of one divided by the rank of the positive: AP and INP alike.
        rank: (b,) mean rank.
        hits: (b, max_rank) share of draws in which it is at rank ≤ 1, 2, …
        spread: (b,) precision if every tie fell for the model, less that if every tie fell against it.
    """

    precision: Floats
    rank: Floats
    hits: Floats
    spread: Floats


class Identities:
    """The identities of a gallery by number, and how many crops of each a query searches.

    Attributes:
        index: which crops a query ignores.
        numbers: (g,) int64 of each gallery crop, in the order of the pids.
    """

    def __init__(self, index: PairIndex) -> None:
        self.index = index
        self.numbers = np.unique(index.labels.gallery_pids, return_inverse=True)[1]
        self._kept: dict[int, Places] = {}

    def num_crops(self, query: int) -> Places:
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

        def expect(rule: Tie, row: int = row, positives: tuple[FloatArray, Places] = positives) -> Floats:
            return _chances(block[row], *positives, identities, first + row, rule)

        chances = expect(tie)
        if protocol.repeats:
            rng = np.random.default_rng([protocol.seed, first + row])
            at_rank = _drawn_ranks(chances, protocol.repeats, rng)
        else:
            at_rank = _expected_ranks(chances)
        draws.precision[row] = _precision(at_rank)
        draws.rank[row] = (at_rank * np.arange(1, len(at_rank) + 1)).sum()
        draws.hits[row] = np.cumsum(np.pad(at_rank, (0, max_rank))[:max_rank])
        draws.spread[row] = 0
        if (counts.at_least[own] > counts.above[own]).any():
            best, worst = (_precision(_expected_ranks(expect(rule))) for rule in ("best", "worst"))
            draws.spread[row] = best - worst
    return draws


def _chances(
    row: FloatArray, scores: FloatArray, columns: Places, identities: Identities, query: int, tie: Tie
) -> Floats:
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
    chances: Floats = (num_above / identities.num_crops(query)[above, None]).T
    return chances


def _precision(at_rank: Floats) -> float:
    """Return the mean of one divided by the rank."""
    return float((at_rank / np.arange(1, len(at_rank) + 1)).sum())


def _expected_ranks(chances: Floats) -> Floats:
    """Return the probability of rank 1, 2, … of the drawn positive, given the chances of others to be above it."""
    num_positives, num_identities = chances.shape
    at_rank = np.zeros((num_positives, num_identities + 1))
    at_rank[:, 0] = 1
    for number, chance in enumerate(chances.T[:, :, None], 1):  # one more identity is above, or is not
        moved = at_rank[:, :number] * chance
        at_rank[:, :number] -= moved
        at_rank[:, 1 : number + 1] += moved
    mean: Floats = at_rank.mean(axis=0)
    return mean


def _drawn_ranks(chances: Floats, repeats: int, rng: np.random.Generator) -> Floats:
    """Return the share of draws in which the drawn positive is at rank 1, 2, …."""
    num_positives, num_identities = chances.shape
    drawn = chances[rng.integers(0, num_positives, repeats)]
    num_above = (rng.random(drawn.shape) < drawn).sum(axis=1)
    shares: Floats = np.bincount(num_above, minlength=num_identities + 1) / repeats
    return shares
