"""Features → blocks of their products, in bounded memory: what evaluation, re-ranking and expansion multiply with.

For scores no copy of the features is made: they are read tile by tile, whatever their type and wherever they lie, and
the lengths of gallery features divide the products instead of the features. A float32 product depends in its last bit
on the shape of the matrices, so both sides are cut into blocks of fixed size and short ends are filled up with zeros:
equal features have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import (
    FLOATS_OF_NUMPY,
    Float32Array,
    Int64Array,
    Tensor,
    is_tensor,
    to_numpy,
)

__all__ = [
    "as_matrix",
    "beside",
    "block_rows",
    "inverse_lengths",
    "join",
    "pool_features",
    "products",
    "score_blocks",
    "tile_bounds",
]

SCORE_BYTES = 48 << 20  # of a block; with the rest it stays below 64 MB
_CONVERTED_SCORE_BYTES = 192 << 20  # of a block where the gallery has to be converted for each block anew
_MAX_ROWS = 1024  # of a block
_ROW_MULTIPLE = 8
TILE_ROWS = 4096  # gallery features converted and multiplied at once; 768 columns take 12 MiB
_READY_TILE_ROWS = 16384  # multiplied at once where nothing is converted: threads wait for one another less often
COLUMN_MULTIPLE = 64
# Squared lengths outside this range lose digits to underflow or overflow in float32.
_MIN_SQUARE, _MAX_SQUARE = 1e-30, 1e30


def score_blocks(query_features: Tensor, gallery_features: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the first query, (b, g) float32 cosine similarities) of all queries in order.

    A block may be overwritten, and is valid until the next is asked for.

    Args:
        query_features: (q, d) of any float type: a numpy array, also memory-mapped, or a torch tensor.
        gallery_features: (g, d) of any float type, on the same device. Tensors of a GPU are multiplied there.

    Raises:
        EvaluationError: not a float matrix; widths differ; a feature is not finite, all zero, or its length is not in
            1e-15..1e15; or the two are on different devices.

    Example:
        >>> [(first, block.tolist()) for first, block in score_blocks(np.eye(2), 3 * np.eye(2))]
        [(0, [[1.0, 0.0], [0.0, 1.0]])]
    """
    query, gallery = as_matrix(query_features, "query"), as_matrix(gallery_features, "gallery")
    _check_widths(query, gallery)
    if _device(query) != _device(gallery):
        raise EvaluationError(
            f"query features are on {_device(query)}, gallery features on {_device(gallery)}; bring both to one device"
        )
    if _device(query) != "cpu":
        from entire_id.evaluation import features_torch as on_tensors

        return on_tensors.score_blocks(query, gallery)
    scales = (inverse_lengths(_squares(one), side) for one, side in ((query, "query"), (gallery, "gallery")))
    return products(query, gallery, *scales)


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
        if features.device.type == "cpu" and str(features.dtype) in FLOATS_OF_NUMPY:
            features = features.numpy()
    is_float = features.dtype.is_floating_point if is_tensor(features) else np.issubdtype(features.dtype, np.floating)
    if features.ndim != 2 or not all(features.shape) or not is_float:
        raise EvaluationError(
            f"{side}_features are {features.dtype} {tuple(features.shape)}; expected float (rows, columns)"
        )
    return features


def _check_widths(query: Tensor, gallery: Tensor) -> None:
    if query.shape[1] != gallery.shape[1]:
        raise EvaluationError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")


def _device(features: Tensor) -> str:
    return str(features.device) if is_tensor(features) else "cpu"


def block_rows(num_query: int, num_gallery: int, score_bytes: int) -> int:
    """Return how many queries are multiplied at once."""
    fitting = max(1, min(score_bytes // (4 * num_gallery), _MAX_ROWS) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    return min(fitting, -(-num_query // COLUMN_MULTIPLE) * COLUMN_MULTIPLE)


def tile_bounds(num_rows: int, max_rows: int) -> list[tuple[int, int]]:
    """Return (start, stop) of runs of rows of one length, a multiple of 64, that cover all rows.

    The last may repeat some rows of the one before. Where there are few rows they are one run, which may go beyond the
    end.

    >>> tile_bounds(5000, 16384), tile_bounds(100, 16384)
    ([(0, 2560), (2440, 5000)], [(0, 128)])
    """
    number = max(-(-num_rows // max_rows), 1 + (num_rows > TILE_ROWS))
    length = -(-num_rows // (number * COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
    starts = [max(0, min(start, num_rows - length)) for start in range(0, num_rows, length)]
    return [(start, start + length) for start in starts]


def products(
    query: Tensor,
    gallery: Tensor,
    query_scale: Float32Array | None = None,
    gallery_scale: Float32Array | None = None,
) -> Iterator[tuple[int, Float32Array]]:
    """Yield (number of the first query, (b, g) float32 products of a block of rows of `query` with all of `gallery`).

    The next block overwrites it.

    Args:
        query: (q, d), as `as_matrix` returns it, on the CPU.
        gallery: (g, d), likewise.
        query_scale: (q,) what each row of `query` is multiplied by, 1 if None.
        gallery_scale: (g,) the same of `gallery`.
    """
    num_gallery, is_ready = len(gallery), _is_ready(gallery)
    num_rows = block_rows(len(query), num_gallery, SCORE_BYTES if is_ready else _CONVERTED_SCORE_BYTES)
    tiles = tile_bounds(num_gallery, _READY_TILE_ROWS if is_ready else TILE_ROWS)
    if len(tiles) == 1:
        gallery, gallery_scale = _filled(gallery, tiles[0][1]), _filled(gallery_scale, tiles[0][1])
    scores = np.empty((num_rows, len(gallery)), np.float32)
    queries = np.zeros((num_rows, query.shape[1]), np.float32)
    for first in range(0, len(query), num_rows):
        num = min(num_rows, len(query) - first)
        queries[:num] = _float32(query[first : first + num])
        queries[num:] = 0
        if query_scale is not None:
            queries[:num] *= query_scale[first : first + num, None]
        for start, end in tiles:  # what the last one repeats is written anew before it is scaled
            np.matmul(queries, _float32(gallery[start:end]).T, out=scores[:, start:end])
            if gallery_scale is not None:
                scores[:, start:end] *= gallery_scale[start:end]
        yield first, scores[:num, :num_gallery]


def _is_ready(features: Tensor) -> bool:
    """Tell whether `_float32` returns rows of `features` as they lie."""
    return not is_tensor(features) and features.dtype == np.float32 and features.flags.c_contiguous


def _float32(rows: Tensor) -> Float32Array:
    """Return rows as float32, one after another in memory: themselves, where they are so already."""
    with np.errstate(over="ignore"):  # found by their length
        return np.ascontiguousarray(to_numpy(rows), np.float32)


def _filled(rows: Tensor | None, length: int) -> Float32Array | None:
    """Return `rows` as float32, followed by zeros up to `length`."""
    if rows is None:
        return None
    filled = np.zeros((length, *rows.shape[1:]), np.float32)
    filled[: len(rows)] = _float32(rows)
    return filled


def _squares(features: Tensor) -> Float32Array:
    """Return (n,) float32 squared length of each row: of equal rows equal, to the last bit."""
    squares = np.empty(len(features), np.float32)
    for start, stop in tile_bounds(len(features), TILE_ROWS):
        tile = _float32(features[start:stop])
        with np.errstate(over="ignore", invalid="ignore"):
            np.vecdot(tile, tile, out=squares[start:stop])
    return squares


def inverse_lengths(squares: Float32Array, side: str) -> Float32Array:
    """Return (n,) float32 one divided by the length of each feature, from (n,) squared lengths.

    Raises:
        EvaluationError: one of them is none that a feature can have.
    """
    _check_squares(squares, side, _MIN_SQUARE)
    inverse: Float32Array = (1 / np.sqrt(squares, dtype=np.float64)).astype(np.float32)
    return inverse


def _check_squares(squares: Float32Array, side: str, lowest: float) -> None:
    bad = np.flatnonzero(~((squares >= lowest) & (squares <= _MAX_SQUARE)))
    if len(bad):
        what = "all zero, or of a length outside 1e-15..1e15" if lowest else "or longer than 1e15"
        raise EvaluationError(f"{len(bad)} {side}_features are NaN, infinite, {what}; the first is row {bad[0]}")


def join(parts: Mapping[str, Tensor], *, unit: bool) -> Float32Array:
    """Return the rows of all parts, one below the other, as float32, scaled to length 1 if `unit`.

    Args:
        parts: (n, d) features of any float type, by the name of their side, on any device.
        unit: whether they are scaled.

    Raises:
        EvaluationError: see `score_blocks`; features that are not scaled may be zero.
    """
    matrices = {side: as_matrix(part, side) for side, part in parts.items()}
    first, *others = matrices.values()
    for other in others:
        _check_widths(first, other)
    joined = np.empty((sum(len(matrix) for matrix in matrices.values()), first.shape[1]), np.float32)
    stop = 0
    for side, matrix in matrices.items():
        rows = joined[stop : stop + len(matrix)]
        stop += len(matrix)
        for start, end in tile_bounds(len(matrix), TILE_ROWS):
            rows[start:end] = _float32(matrix[start:end])
        squares = _squares(rows)
        if unit:
            rows *= inverse_lengths(squares, side)[:, None]
        else:
            _check_squares(squares, side, 0)
    return joined


def pool_features(features: Tensor, pids: Int64Array, camids: Int64Array) -> tuple[Tensor, Int64Array]:
    """Return the mean unit feature of each (pid, camid), and the first row of each.

    Args:
        features: (n, d) of any float type.
        pids: (n,) int.
        camids: (n,) int.

    Returns:
        (m, d) float32 by pid and camid, on the device of `features`, and (m,) int64 row numbers.

    Raises:
        EvaluationError: see `score_blocks`.
    """
    unit = join({"query": features}, unit=True)
    order = np.lexsort((camids, pids))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(pids[order]) != 0) | (np.diff(camids[order]) != 0)
    starts = np.flatnonzero(is_first)
    sums: npt.NDArray[Any] = np.add.reduceat(unit[order], starts, axis=0, dtype=np.float64)
    means = (sums / np.diff([*starts, len(order)])[:, None]).astype(np.float32)
    return beside(means, features), order[starts]


def beside(values: Float32Array, features: Tensor) -> Tensor:
    """Return `values` on the device of `features`: as a tensor only where that is not the CPU."""
    if _device(features) == "cpu":
        return values
    import torch

    return torch.from_numpy(values).to(features.device)
