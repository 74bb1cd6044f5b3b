"""Features → blocks of cosine similarities, in bounded memory.

No copy of the features is made: they are read tile by tile, whatever their type and wherever they lie, and the lengths
of gallery features divide the products instead of the features. A float32 product depends in its last bit on the shape
of the matrices, so both sides are cut into blocks of fixed size and short ends are filled up with zeros: equal features
have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import FloatArray, Integers, Tensor, is_tensor, to_numpy

__all__ = ["as_matrix", "block_rows", "check_squares", "pool_features", "score_blocks", "tile_bounds"]

SCORE_BYTES = 48 << 20  # of a block; with the rest it stays below 64 MB
_MAX_ROWS = 512  # of a block
_ROW_MULTIPLE = 8
TILE_ROWS = 4096  # gallery features multiplied at once; a converted tile of 768 columns takes 12 MiB
COLUMN_MULTIPLE = 64
# Squared lengths outside this range lose digits to underflow or overflow in float32.
MIN_SQUARE, MAX_SQUARE = 1e-30, 1e30


def score_blocks(query_features: Tensor, gallery_features: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the first query, (b, g) float32 cosine similarities) of all queries in order.

    A block may be overwritten, and is valid until the next is asked for.

    Args:
        query_features: (q, d) of any float type: a numpy array, also memory-mapped, or a torch tensor.
        gallery_features: (g, d), of the same kind. Tensors of a device are multiplied there.

    Raises:
        EvaluationError: not a float matrix; widths differ; a feature is not finite, all zero, or its length is not in
            1e-15..1e15; or the two are not in one place.

    Example:
        >>> [(first, block.tolist()) for first, block in score_blocks(np.eye(2), 3 * np.eye(2))]
        [(0, [[1.0, 0.0], [0.0, 1.0]])]
    """
    query, gallery = as_matrix(query_features, "query"), as_matrix(gallery_features, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise EvaluationError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")
    if is_tensor(query) != is_tensor(gallery) or (is_tensor(query) and query.device != gallery.device):
        raise EvaluationError(
            f"query features are on {_place(query)}, gallery features on {_place(gallery)}; bring both to one device"
        )
    if is_tensor(query):
        from entire_id.evaluation import features_torch as on_tensors

        return on_tensors.score_blocks(query, gallery)
    return _score_blocks(query, gallery)


def as_matrix(features: Tensor, side: str) -> Tensor:
    """Return `features`, a float matrix: as a tensor only where numpy cannot hold it.

    Raises:
        EvaluationError: see `score_blocks`.
    """
    if not isinstance(features, np.ndarray) and not is_tensor(features):
        raise EvaluationError(
            f"{side}_features are a {type(features).__name__}; expected a numpy array or a torch tensor (rows, columns)"
        )
    if is_tensor(features):
        features = features.detach()
        if features.device.type == "cpu" and str(features.dtype) != "torch.bfloat16":
            features = features.numpy()
    is_float = features.dtype.is_floating_point if is_tensor(features) else np.issubdtype(features.dtype, np.floating)
    if features.ndim != 2 or not all(features.shape) or not is_float:
        raise EvaluationError(
            f"{side}_features are {features.dtype} {tuple(features.shape)}; expected float (rows, columns)"
        )
    return features


def _place(features: Tensor) -> str:
    return str(features.device) if is_tensor(features) else "the processor"


def block_rows(num_query: int, num_gallery: int, score_bytes: int) -> int:
    """Return how many queries are multiplied at once."""
    fitting = max(1, min(score_bytes // (4 * num_gallery), _MAX_ROWS) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return min(fitting, -(-num_query // COLUMN_MULTIPLE) * COLUMN_MULTIPLE)


def tile_bounds(num_rows: int) -> list[tuple[int, int]]:
    """Return (start, stop) of runs of rows of one length, a multiple of 64, that cover all rows.

    The last may repeat some rows of the one before. Only where all rows fit into one run may it go beyond the end.

    >>> tile_bounds(5000), tile_bounds(100)
    ([(0, 2560), (2440, 5000)], [(0, 128)])
    """
    number = -(-num_rows // TILE_ROWS)
    length = -(-num_rows // (number * COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
    starts = [max(0, min(start, num_rows - length)) for start in range(0, num_rows, length)]
    return [(start, start + length) for start in starts]


def _score_blocks(query: FloatArray, gallery: FloatArray) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    query_scale, gallery_scale = _inverse_lengths(query, "query"), _inverse_lengths(gallery, "gallery")
    num_rows, num_gallery = block_rows(len(query), len(gallery), SCORE_BYTES), len(gallery)
    tiles = tile_bounds(num_gallery)
    gallery, gallery_scale = _filled(gallery, tiles[-1][1]), _filled(gallery_scale, tiles[-1][1])
    scores = np.empty((num_rows, len(gallery)), np.float32)
    queries = np.zeros((num_rows, query.shape[1]), np.float32)
    for first in range(0, len(query), num_rows):
        stop = min(first + num_rows, len(query))
        np.multiply(_float32(query[first:stop]), query_scale[first:stop, None], out=queries[: stop - first])
        queries[stop - first :] = 0
        for start, end in tiles:  # what the last one repeats is written anew before it is scaled
            np.matmul(queries, _float32(gallery[start:end]).T, out=scores[:, start:end])
            scores[:, start:end] *= gallery_scale[start:end]
        yield first, scores[: stop - first, :num_gallery]


def _float32(rows: FloatArray) -> npt.NDArray[np.float32]:
    """Return rows as float32, one after another in memory: themselves, where they are so already."""
    with np.errstate(over="ignore"):  # found by their length
        return np.ascontiguousarray(rows, np.float32)


def _filled(rows: FloatArray, length: int) -> FloatArray:
    """Return `rows`, followed by rows of zeros where there are fewer than `length`."""
    if len(rows) >= length:
        return rows
    filled = np.zeros((length, *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    return filled


def _inverse_lengths(features: FloatArray, side: str) -> npt.NDArray[np.float32]:
    """Return (n,) float32 one divided by the length of each row."""
    squares = np.empty(len(features), np.float32)
    for start, stop in tile_bounds(len(features)):
        tile = _float32(features[start:stop])
        with np.errstate(over="ignore", invalid="ignore"):
            np.vecdot(tile, tile, out=squares[start:stop])  # equal rows have equal lengths, to the last bit
    check_squares(squares, side)
    inverse: npt.NDArray[np.float32] = (1 / np.sqrt(squares, dtype=np.float64)).astype(np.float32)
    return inverse


def check_squares(squares: npt.NDArray[np.float32], side: str) -> None:
    """Raise an EvaluationError where a squared length is none that a feature can have."""
    bad = np.flatnonzero(~((squares >= MIN_SQUARE) & (squares <= MAX_SQUARE)))
    if len(bad):
        raise EvaluationError(
            f"{len(bad)} {side}_features are NaN, infinite, all zero, or of a length outside 1e-15..1e15; the first is "
            f"row {bad[0]}"
        )


def pool_features(
    features: Tensor, pids: Integers, camids: Integers
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the mean unit feature of each (pid, camid), and the first row of each.

    Args:
        features: (n, d) of any float type.
        pids: (n,) int.
        camids: (n,) int.

    Returns:
        (m, d) float32 by pid and camid, and (m,) int64 row numbers.

    Raises:
        EvaluationError: see `score_blocks`; or the features of a person under a camera cancel out.
    """
    values = _float32(to_numpy(as_matrix(features, "query")))
    unit = values * _inverse_lengths(values, "query")[:, None]
    order = np.lexsort((camids, pids))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(pids[order]) != 0) | (np.diff(camids[order]) != 0)
    starts = np.flatnonzero(is_first)
    sums: npt.NDArray[Any] = np.add.reduceat(unit[order], starts, axis=0, dtype=np.float64)
    return (sums / np.diff([*starts, len(order)])[:, None]).astype(np.float32), order[starts]
