"""Who is nearest to whom."""

from __future__ import annotations

import numpy as np

from entire_id.evaluation.arrays import Float32Array, Int32Array, Int64Array

__all__ = ["highest"]

_GROUP = 16  # 32 and 64 took longer with 20,000 columns
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


def highest(scores: Float32Array, count: int) -> Int32Array:
    """Return (b, count) the columns of the highest of (b, c) `scores`, highest first, ties in the order of the columns.

    Nothing of the size of `scores` is sorted: columns that are congruent are a group, and the `count` highest lie in
    the `count` groups with the highest maxima, unless groups tie for the last place, or in the few columns at the end
    that are in no group.
    """
    num_groups = scores.shape[1] // _GROUP
    if not count or num_groups <= count:
        return _in_order(scores, np.arange(scores.shape[1]), count)
    num_grouped = _GROUP * num_groups
    maxima = scores[:, :num_grouped].reshape(len(scores), _GROUP, num_groups).max(axis=1)
    groups = np.argpartition(maxima, num_groups - count, axis=1)[:, num_groups - count :]
    columns = (groups[:, None, :] + num_groups * np.arange(_GROUP)[:, None]).reshape(len(scores), -1)
    odd_end = np.broadcast_to(np.arange(num_grouped, scores.shape[1]), (len(scores), scores.shape[1] - num_grouped))
    columns = np.hstack([columns, odd_end])
    cells = columns + np.arange(len(scores))[:, None] * scores.shape[1]
    found = _in_order(np.take(scores, cells), columns, count)  # faster than take_along_axis
    lowest = np.take_along_axis(maxima, groups, 1).min(axis=1, keepdims=True)
    for row in np.flatnonzero((maxima >= lowest).sum(axis=1) > count):
        found[row] = _in_order(scores[row : row + 1], np.arange(scores.shape[1]), count)
    return found


def _in_order(scores: Float32Array, columns: Int64Array, count: int) -> Int32Array:
    """Return (b, count) those of `columns` that have the highest `scores`, as `highest` does.

    One integer holds both: above, the bits of the score such that a higher one gives a smaller integer; below, the
    column.
    """
    bits = (0 - scores).view(np.int32)  # 0 - x: never the negative zero, which has other bits than zero
    bits ^= (bits >> 31) & _ALL_BUT_SIGN
    keys = (bits.astype(np.int64) << 32) | columns
    if count < keys.shape[1]:
        keys = np.partition(keys, count, axis=1)[:, :count]
    return np.sort(keys, axis=1).astype(np.uint32).view(np.int32)
