"""What the ranks of a query's positives say of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from entire_id.evaluation.arrays import Float64Array, Int32Array, Int64Array
from entire_id.evaluation.counting import Counts
from entire_id.evaluation.protocols import Ap

__all__ = ["Part", "tally"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What is known of the b queries of one block; NaN where a query has no positive. See `Scores` for the names.

    Attributes:
        num_positives: (b,) int64.
        ranks: (sum of num_positives,) int32.
        average_precision: (b,) in [0, 1].
        inverse_penalty: (b,) in [0, 1].
        first_rank: (b,) from 1.
        spread: (b,) AP if every tie fell for the model, less the AP if every tie fell against it.
        hits: (b, max_rank) under a single-shot protocol, else None.
    """

    num_positives: Int64Array
    ranks: Int32Array
    average_precision: Float64Array
    inverse_penalty: Float64Array
    first_rank: Float64Array
    spread: Float64Array
    hits: Float64Array | None = None


def tally(counts: Counts, ap: Ap) -> Part:
    """Return what the counts of some queries say of them, with AP of that kind."""
    places = counts.places
    ranks = places + counts.chosen
    valid, starts = counts.num_positives > 0, counts.starts
    precision, worst, best = (
        _mean_precision(places, number, counts, ap) for number in (counts.chosen, counts.at_least, counts.above)
    )
    penalty, first_rank = np.full(len(valid), np.nan), np.full(len(valid), np.nan)
    penalty[valid] = counts.num_positives[valid] / ranks[(starts + counts.num_positives - 1)[valid]]
    first_rank[valid] = ranks[starts[valid]]
    return Part(counts.num_positives, ranks.astype(np.int32), precision, penalty, first_rank, best - worst)


def _mean_precision(places: Int64Array, negatives_above: Int64Array, counts: Counts, ap: Ap) -> Float64Array:
    """Return the AP of each query, given how many negatives stand above each of its positives; NaN without any."""
    precision = places / (places + negatives_above)
    if ap == "trapezoid":  # precision just before the positive; 1 before anything is found, as in compute_AP.m
        before = places + negatives_above - 1
        precision += np.divide(places - 1, before, out=np.ones(len(places)), where=before > 0)
        precision /= 2
    result = np.full(len(counts.num_positives), np.nan)
    valid = counts.num_positives > 0
    if len(places):
        result[valid] = np.add.reduceat(precision, counts.starts[valid]) / counts.num_positives[valid]
    return result
