"""How many gallery crops stand above each positive: counted, exactly, without ranking the gallery.

Only the ranks of a query's positives enter its scores, and a rank is one more than the number of kept crops that score
higher. So the positives of a query are taken out of its row of scores and sorted, what it ignores is taken out too, and
the rest is compared with them. Every kernel gives the same integers for the same scores.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import FloatArray, Int64Array, Tensor, is_tensor
from entire_id.evaluation.labels import PairIndex

__all__ = ["Counts", "Kernel", "Tie", "count_negatives", "take_positives"]

Kernel = Literal["auto", "numpy", "numba"]
"""What counts in numpy arrays: `auto` is numba where it works, and numpy otherwise. Tensors count themselves."""

Tie = Literal["worst", "best", "stable"]
"""Where a positive stands among negatives of exactly its score: below all, above all, or by the gallery's order."""

_SCORES_PER_THREAD = 1 << 20  # fewer are counted before another thread has started


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """The negatives above each positive of some queries.

    Attributes:
        num_positives: (b,) int64 positives of each query.
        scores: (n,) scores of the positives, query by query, descending within each.
        columns: (n,) int64 which gallery crops they are.
        at_least: (n,) int64 negatives that score at least as high.
        above: (n,) int64 negatives that score higher.
        chosen: (n,) int64 negatives that stand above it by the rule for ties.
    """

    num_positives: Int64Array
    scores: FloatArray
    columns: Int64Array
    at_least: Int64Array
    above: Int64Array
    chosen: Int64Array

    @property
    def places(self) -> Int64Array:
        """(n,) the place of each positive among those of its query, from 1."""
        return np.arange(1, len(self.scores) + 1) - np.repeat(self.starts, self.num_positives)

    @property
    def starts(self) -> Int64Array:
        """(b,) where the positives of each query start."""
        return np.cumsum(self.num_positives) - self.num_positives


def count_negatives(block: Tensor, first: int, index: PairIndex, tie: Tie = "worst", kernel: Kernel = "auto") -> Counts:
    """Return the counts of the queries from `first` on. Afterwards `block` holds the scores of negatives, else -inf.

    Args:
        block: (b, g) finite scores, higher is more alike; float32 or float64; overwritten.
        first: number of the query of its first row.
        index: which pairs are positives or ignored.
        tie: see `Tie`.
        kernel: see `Kernel`.

    Raises:
        EvaluationError: `tie` or `kernel` is unknown, or the kernel is not installed.
    """
    for name, value, kind in (("tie", tie, Tie), ("kernel", kernel, Kernel)):
        if value not in get_args(kind):
            raise EvaluationError(f"{name} {value!r} is not one of {', '.join(get_args(kind))}")
    rows, columns, scores = take_positives(block, first, index)
    num_positives = np.bincount(rows, minlength=len(block))
    at_least, above = _counter(block, kernel)(block, scores, num_positives)
    chosen = at_least if tie == "worst" else above
    if tie == "stable":
        chosen = above.copy()
        for number in np.flatnonzero(at_least > above).tolist():  # rare: exact ties
            before = block[int(rows[number]), : int(columns[number])]
            chosen[number] += int((before == scores[number].item()).sum())
    return Counts(num_positives, scores, columns, at_least, above, chosen)


def take_positives(block: Tensor, first: int, index: PairIndex) -> tuple[Int64Array, Int64Array, FloatArray]:
    """Return row, gallery crop and score of the positives of the queries from `first` on.

    They go query by query, descending within each; of equal scores the first in the gallery comes first. Afterwards
    `block` holds the scores of negatives, else -inf.
    """
    take: Any
    hide: Any
    if is_tensor(block):
        from entire_id.evaluation import counting_torch as on_tensors

        take, hide = on_tensors.take, on_tensors.hide
    else:
        take, hide = _take, _hide
    pairs = index.pairs(first, first + len(block))
    rows, columns = pairs.rows[pairs.is_positive], pairs.columns[pairs.is_positive]
    scores = take(block, rows, columns)
    hide(block, pairs.rows, pairs.columns, index, first)
    order = np.lexsort((-scores, rows))  # stable, and the pairs come in the order of the gallery
    return rows, columns[order], scores[order]


def _take(block: FloatArray, rows: Int64Array, columns: Int64Array) -> FloatArray:
    return block[rows, columns]


def _hide(block: FloatArray, rows: Int64Array, columns: Int64Array, index: PairIndex, first: int) -> None:
    """Overwrite what is no negative."""
    block[rows, columns] = -np.inf
    if len(index.junk):
        block[:, index.junk] = -np.inf
    if index.groups is not None:
        query_groups, gallery_groups = index.groups
        for row, group in zip(block, query_groups[first:], strict=False):
            row[gallery_groups != group] = -np.inf


def _counter(block: Tensor, kernel: Kernel) -> Any:  # noqa: ANN401 a function like `_count`, but for its first argument
    if is_tensor(block):
        from entire_id.evaluation.counting_torch import count

        return count
    count_rows = _row_counter(kernel)
    return lambda *arguments: _count(count_rows, *arguments)


def _row_counter(kernel: Kernel) -> Any:  # noqa: ANN401 a function like `_count_rows`
    if kernel == "numpy":
        return _count_rows
    compiled, reason = _compiled()
    if compiled is None and kernel == "numba":
        raise EvaluationError(f"kernel 'numba' cannot be used ({reason}); type: pip install 'entire-id[fast]'")
    return compiled or _count_rows


@cache  # a failed import is not remembered, and would be tried for every block
def _compiled() -> tuple[Any, str]:
    """Return the compiled `_count_rows`, or None, and why there is none."""
    try:
        from entire_id.evaluation.counting_numba import count_rows
    except Exception as error:  # what numba raises where it does not go with numpy shares no other class
        return None, str(error)
    return count_rows, ""


def _count(
    count_rows: Any,  # noqa: ANN401 a function like `_count_rows`
    block: FloatArray,
    scores: FloatArray,
    num_positives: Int64Array,
) -> tuple[Int64Array, Int64Array]:
    """Count with as many threads as there are processors; each takes a run of rows."""
    bounds = np.concatenate([[0], np.cumsum(num_positives)])
    at_least, above = np.zeros(len(scores), np.int64), np.zeros(len(scores), np.int64)
    num_threads = min(_num_processors(), len(block), 1 + block.size // _SCORES_PER_THREAD)
    edges = np.linspace(0, len(block), num_threads + 1).astype(np.int64).tolist()

    def count(start: int, stop: int) -> None:
        count_rows(block, scores, bounds, at_least, above, start, stop)

    if num_threads == 1:
        count(0, len(block))
    else:
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(count, edges[:-1], edges[1:]))
    return at_least, above


def _num_processors() -> int:
    """Return how many processors this process may use, where the system tells, or how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count_rows(  # noqa: PLR0913 what every kernel takes
    block: FloatArray,
    scores: FloatArray,
    bounds: Int64Array,
    at_least: Int64Array,
    above: Int64Array,
    start: int,
    stop: int,
) -> None:
    """Count the entries of each row of `block` that reach its positives.

    Args:
        block: (b, g) scores of negatives, else -inf.
        scores: (n,) scores of the positives, query by query, descending within each.
        bounds: (b + 1,) where those of a query start and stop.
        at_least: (n,) filled with the counts of entries that score at least as high.
        above: (n,) filled with the counts of entries that score higher.
        start: first row.
        stop: row after the last.
    """
    for row in range(start, stop):
        low, high = int(bounds[row]), int(bounds[row + 1])
        if low == high:
            continue
        reaching = np.sort(block[row].compress(block[row] >= scores[high - 1]))  # by a mask it takes twice as long
        at_least[low:high] = len(reaching) - np.searchsorted(reaching, scores[low:high], "left")
        above[low:high] = len(reaching) - np.searchsorted(reaching, scores[low:high], "right")
