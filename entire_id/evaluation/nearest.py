"""Features, their products block by block, and who is nearest to whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError

__all__ = ["Crops", "FloatArray", "Floats", "Positions", "Rows", "highest", "join", "products"]

Floats = npt.NDArray[np.floating[Any]]
FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]

_BLOCK_BYTES = 32 << 20
_CHUNK = 4096  # rows converted at once
_LONGEST = 1e18  # its square and the sums of some such are float32 numbers
# Matrix products treat the rows at an odd end by another routine, in which equal rows need not score the same: both
# sides are padded to a multiple of this, and multiplied in blocks of a multiple of it.
_ROW_MULTIPLE = 64
_GROUP = 16  # divides _ROW_MULTIPLE; 32 and 64 took longer with 20,000 columns
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


@dataclass(frozen=True, slots=True)
class Crops:
    """Features ready for products.

    Attributes:
        features: (more than n, d) float32; rows from n on are zero.
        squares: (more than n,) float32 squared length of each row.
        num: n.
    """

    features: FloatArray
    squares: FloatArray
    num: int

    def rows(self, first: int, num: int) -> FloatArray:
        """Return `num` rows and what follows them, up to a multiple of `_ROW_MULTIPLE`."""
        return self.features[first : first + _padded(num)]


def join(parts: Mapping[str, Floats], *, unit: bool) -> Crops:
    """Return the rows of all `parts`, checked, one below the other, scaled to length 1 if `unit`."""
    arrays = {name: np.asanyarray(part) for name, part in parts.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.floating):
            raise EvaluationError(f"{name}_features are {array.dtype} {array.shape}; expected float (rows, columns)")
    first, *others = arrays.values()
    for other in others:
        if other.shape[1] != first.shape[1]:
            raise EvaluationError(_columns_differ(first, other))
    num = sum(len(array) for array in arrays.values())
    features = np.zeros((_padded(num) + _ROW_MULTIPLE, first.shape[1]), np.float32)
    start = 0
    for name, array in arrays.items():
        _fill(features[start : start + len(array)], array, name, unit)
        start += len(array)
    return Crops(features, np.einsum("ij,ij->i", features, features), num)


def _fill(out: FloatArray, features: Floats, name: str, unit: bool) -> None:
    """Write `features` to `out`, a part at a time: they may be memory-mapped."""
    bad: list[npt.NDArray[np.intp]] = []
    for first in range(0, len(features), _CHUNK):
        part = np.asarray(features[first : first + _CHUNK])
        lengths = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64, casting="same_kind"))
        # Squares are kept in float32.
        wrong = ~np.isfinite(lengths) | (lengths == 0 if unit else lengths > _LONGEST)
        bad.append(first + np.flatnonzero(wrong))
        lengths[wrong] = 1
        if not bad[-1].size:
            np.divide(part, lengths[:, None] if unit else 1, out=out[first : first + _CHUNK], casting="same_kind")
    rows = np.concatenate(bad)
    if len(rows):
        what = "NaN, infinite or all zero" if unit else f"NaN, infinite or longer than {_LONGEST:.0e}"
        raise EvaluationError(f"{len(rows)} {name}_features are {what}; the first is row {rows[0]}")


def _columns_differ(query: Floats, gallery: Floats) -> str:
    return f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}"


def _padded(num: int) -> int:
    return -(-num // _ROW_MULTIPLE) * _ROW_MULTIPLE


def products(left: FloatArray, right: FloatArray, num: int) -> Iterator[tuple[int, FloatArray]]:
    """Yield (first row, products of a block of rows of `left` with all of `right`) of the first `num` rows of `left`.

    The number of rows of both is a multiple of `_ROW_MULTIPLE`.
    """
    block = max(1, _BLOCK_BYTES // (4 * len(right) * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    for first in range(0, num, block):
        yield first, (left[first : first + block] @ right.T)[: num - first]


def highest(scores: FloatArray, count: int) -> Rows:
    """Return (b, count) the columns of the highest of (b, c) `scores`, highest first, ties in the order of the columns.

    Nothing of the size of `scores` is sorted: columns that are congruent are a group, and the `count` highest lie in
    the `count` groups with the highest maxima, unless groups tie for the last place.
    """
    num_groups = scores.shape[1] // _GROUP
    if not count or num_groups <= count:
        return _in_order(scores, np.arange(scores.shape[1]), count)
    maxima = scores.reshape(len(scores), _GROUP, num_groups).max(axis=1)
    groups = np.argpartition(maxima, num_groups - count, axis=1)[:, num_groups - count :]
    columns = (groups[:, None, :] + num_groups * np.arange(_GROUP)[:, None]).reshape(len(scores), -1)
    cells = columns + np.arange(len(scores))[:, None] * scores.shape[1]
    found = _in_order(np.take(scores, cells), columns, count)  # faster than take_along_axis
    lowest = np.take_along_axis(maxima, groups, 1).min(axis=1, keepdims=True)
    for row in np.flatnonzero((maxima >= lowest).sum(axis=1) > count):
        found[row] = _in_order(scores[row : row + 1], np.arange(scores.shape[1]), count)
    return found


def _in_order(scores: FloatArray, columns: Positions, count: int) -> Rows:
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
