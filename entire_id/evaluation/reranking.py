"""k-reciprocal re-ranking and query expansion in bounded memory.

Re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017) describes every
crop, query or gallery, by a weighted set of crops: its k-reciprocal neighbours. The distance of two crops becomes a mix
of their own distance and the Jaccard distance of their sets. A set holds some tens of crops, so sets are kept as sparse
rows; two crops that share no member have Jaccard distance exactly 1. Neither the N × N matrix of the published code
(N = queries + gallery) nor a query × gallery matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import BoolArray, Float32Array, FloatArray, Int32Array, Int64Array, Tensor
from entire_id.evaluation.features import beside, join, products
from entire_id.evaluation.nearest import highest
from entire_id.records import Progress, no_progress

__all__ = ["PRESETS", "RerankConfig", "expand_queries", "rerank"]

_TABLE_CELLS = 4 << 20  # of what is worked on together
_NOISE = 1e-6  # relative error of a float32 product, rounded up


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankConfig:
    """How to re-rank. The known code bases differ in the points below; `preset` names what each of them does.

    Attributes:
        k1: neighbours that a k-reciprocal set starts from, at least 1. Sets are grown by those of half the size:
            round(k1 / 2), halves to even, as `numpy.around` rounds.
        k2: rows whose sets are averaged into a crop's, its own included ("local query expansion"); 1 leaves sets as
            they are.
        lambda_: share of the crops' own distance in the result, in [0, 1]; the rest is Jaccard distance. At 1 the order
            is that of plain distances.
        unit_features: scale features to length 1 first. Distances then rank as cosine similarity does.
        power: 1 for the squared Euclidean distance, 2 for its square: code that squares what it is given makes the
            latter of distances that are squared already.
        divide_by_max: divide the distances of each crop by the largest of them; all are 0 where that is only rounding.
        k1_counts_self: the k1 neighbours count the crop itself (a search that returns k1 rows); else there are k1
            besides it. The sets of half the size hold round(k1 / 2) besides it either way.
        mix_cosine: the own distance that `lambda_` weighs is 1 − cosine similarity; else it is the distance that the
            sets are made from. Needs `unit_features`.
        half_precision: keep sets and sum overlaps in float16, as the published code that allocates float16 arrays does;
            else in float32.
    """

    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3
    unit_features: bool = True
    power: int = 1
    divide_by_max: bool = True
    k1_counts_self: bool = False
    mix_cosine: bool = False
    half_precision: bool = False

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} {getattr(self, name)!r} is not at least 1")
        if not 0 <= self.lambda_ <= 1:
            raise EvaluationError(f"lambda_ {self.lambda_!r} is not in 0..1")
        if self.power not in (1, 2):
            raise EvaluationError(f"power {self.power!r} is not 1 or 2")
        if self.mix_cosine and not self.unit_features:
            raise EvaluationError("mix_cosine needs unit_features: set both, or neither")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RerankConfig:  # noqa: ANN401 what `replace` takes
        """Return what the code base `name` does, with `changes`.

        Raises:
            EvaluationError: no preset has that name, or a change is out of range.

        Example:
            >>> RerankConfig.preset("transreid", k2=6).k1
            50
        """
        if name not in PRESETS:
            raise EvaluationError(f"no preset {name!r}; there is {', '.join(PRESETS)}")
        return replace(PRESETS[name], **changes)


PRESETS: Mapping[str, RerankConfig] = MappingProxyType(
    {
        "original": RerankConfig(unit_features=False),
        "torchreid": RerankConfig(unit_features=False, power=2),
        "strong-baseline": RerankConfig(half_precision=True),
        "transreid": RerankConfig(k1=50, k2=15, half_precision=True),
        "fast-reid": RerankConfig(divide_by_max=False, k1_counts_self=True, mix_cosine=True),
    }
)
"""What the known code bases do, by name; docs/reranking.md says it in words."""


def rerank(
    query_features: Tensor,
    gallery_features: Tensor,
    config: RerankConfig | None = None,
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[int, Float32Array]]:
    """Return blocks of re-ranked similarity, in the order of the queries.

    Neighbours at the same distance are taken in the order of their rows, queries before gallery.

    Args:
        query_features: (q, d) of any float type: a numpy array, also memory-mapped, or a torch tensor on any device.
            The work is done on the CPU, with a copy in float32.
        gallery_features: (g, d) of any float type, wherever it lies.
        config: what to do; `RerankConfig()` where None.
        progress: told how far it is.

    Returns:
        An iterator over (number of the first query, (b, g) float32 of −distance, higher is more alike). The work is
        done as it is consumed: the first block comes once all neighbours are found.

    Raises:
        EvaluationError: not a float matrix; widths differ; a feature is not finite or longer than 1e15, or, where it is
            to be scaled to length 1, all zero or shorter than 1e-15.

    Example:
        >>> features = np.eye(3)
        >>> [(first, block.argmax(1).tolist()) for first, block in rerank(features, features, RerankConfig(k1=1, k2=1))]
        [(0, [0, 1, 2])]
    """
    config = config or RerankConfig()
    features = join({"query": query_features, "gallery": gallery_features}, unit=config.unit_features)
    crops = _Crops(features, np.vecdot(features, features))
    return _reranked(crops, len(query_features), config, progress)


def expand_queries(query_features: Tensor, gallery_features: Tensor | None, k: int, *, alpha: float = 0.0) -> Tensor:
    """Return queries moved towards their nearest gallery crops.

    A query becomes q + Σ max(cos(q, x), 0)^alpha · x over its `k` nearest crops x, all of length 1, scaled to length 1.
    `alpha` 0 is average query expansion (Chum et al., "Total Recall", ICCV 2007), which gives all the same weight;
    alpha > 0 is α-weighted (Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018,
    who take 3).

    Args:
        query_features: (q, d) of any float type: a numpy array, also memory-mapped, or a torch tensor on any device.
            The work is done on the CPU, with a copy in float32.
        gallery_features: (g, d) of any float type, wherever it lies. None expands every query by the other queries:
            given the gallery as queries, that is database-side augmentation (Arandjelović and Zisserman, CVPR 2012).
        k: neighbours, at least 1; all where there are fewer.
        alpha: 0 or more.

    Returns:
        (q, d) float32 of length 1, a numpy array; a tensor where the queries are on another device, and there.

    Raises:
        EvaluationError: not a float matrix; widths differ; a feature is not finite, all zero, or its length is not in
            1e-15..1e15; `k` or `alpha` is out of range; or a query and its neighbours add up to zero.

    Example:
        >>> expand_queries(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [-1.0, 0.0]]), 1)
        array([[0.70710677, 0.70710677]], dtype=float32)
    """
    if k < 1:
        raise EvaluationError(f"k {k!r} is not at least 1")
    if not (alpha >= 0 and np.isfinite(alpha)):
        raise EvaluationError(f"alpha {alpha!r} is not a number of 0 or more")
    parts = {"query": query_features}
    if gallery_features is not None:
        parts["gallery"] = gallery_features
    unit = join(parts, unit=True)
    num_query, alone = len(query_features), gallery_features is None
    queries, others = unit[:num_query], unit if alone else unit[num_query:]
    expanded = np.empty_like(queries)
    for first, scores in products(queries, others):
        numbers = np.arange(first, first + len(scores))
        if alone:
            scores[numbers - first, numbers] = -np.inf
        near = highest(scores, min(k, len(others) - alone))
        weights = np.maximum(np.take_along_axis(scores, near, 1), 0) ** np.float32(alpha)
        for number, columns, of in zip(numbers.tolist(), near, weights, strict=True):
            expanded[number] = queries[number] + of @ others[columns]
    return beside(join({"expanded query": expanded}, unit=True), query_features)


@dataclass(frozen=True, slots=True, eq=False)
class _Crops:
    """All crops, queries first.

    Attributes:
        features: (n, d) float32.
        squares: (n,) float32 squared length of each.
    """

    features: Float32Array
    squares: Float32Array

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True, eq=False)
class _Sets:
    """Weighted sets of rows, one set after another: set i has `members[starts[i] : starts[i + 1]]`, and so its weights.

    Attributes:
        starts: (sets + 1,).
        members: row numbers, ascending within a set.
        weights: one for each member, float32 or float16.
    """

    starts: Int64Array
    members: Int32Array
    weights: FloatArray

    def entries(self, sets: Int32Array) -> tuple[Int64Array, Int64Array]:
        """Return for every member of each of `sets`: which of `sets` it is of, and its position in `members`."""
        lengths = self.starts[sets + 1] - self.starts[sets]
        owners = np.repeat(np.arange(len(sets)), lengths)
        shifts = self.starts[sets] - (np.cumsum(lengths) - lengths)
        return owners, np.arange(len(owners)) + shifts[owners]


def _reranked(
    crops: _Crops, num_query: int, config: RerankConfig, progress: Progress
) -> Iterator[tuple[int, Float32Array]]:
    nearest, farthest = _neighbours(crops, _num_neighbours(config, len(crops)), progress)
    sets = _sets(crops, nearest, farthest, config)
    if config.k2 > 1:
        sets = _averaged(sets, nearest[:, : config.k2])
    del nearest
    holders = _holders(sets, num_query)
    overlaps = np.zeros(len(crops) - num_query, sets.weights.dtype)
    for first, block in products(crops.features[:num_query], crops.features[num_query:]):
        distances = _own_distances(block, crops, slice(first, first + len(block)), config, farthest)
        distances *= np.float32(config.lambda_)
        for row, number in enumerate(range(first, first + len(block))):
            _add_jaccard(distances[row], sets, holders, number, overlaps, 1 - config.lambda_)
        progress("re-ranking", first + len(block), num_query)
        yield first, np.negative(distances, out=distances)


def _num_neighbours(config: RerankConfig, num: int) -> int:
    return min(num, config.k1 if config.k1_counts_self else max(config.k1 + 1, config.k2))


def _neighbours(crops: _Crops, count: int, progress: Progress) -> tuple[Int32Array, Float32Array]:
    """Return (n, count) the rows nearest to each row, and (n,) the largest squared distance from it.

    Infinity stands for a largest distance that is only rounding: divided by it, all are 0 (published code: 0 / 0).
    """
    nearest, farthest = np.empty((len(crops), count), np.int32), np.empty(len(crops), np.float32)
    half_squares = crops.squares / 2
    for first, scores in products(crops.features, crops.features):
        rows = slice(first, first + len(scores))
        scores -= half_squares  # |x - y|² = |x|² - 2 (x·y - |y|² / 2)
        farthest[rows] = crops.squares[rows] - 2 * scores.min(axis=1)
        nearest[rows] = highest(scores, count)
        progress("finding neighbours", rows.stop, len(crops))
    return nearest, np.where(farthest > _NOISE * crops.squares, farthest, np.inf).astype(np.float32)


def _sets(crops: _Crops, nearest: Int32Array, farthest: Float32Array, config: RerankConfig) -> _Sets:
    """Return the k-reciprocal set of each row, grown, with weights exp(-distance) that add up to 1 (section 3.2)."""
    lists = nearest[:, : config.k1 + 1]
    halves = lists[:, : round(config.k1 / 2) + 1]
    mutual, half_mutual = _mutual(lists), _mutual(halves)
    dtype = np.float16 if config.half_precision else np.float32
    lengths, members, weights = [], [], []
    block = _table_rows(max(len(crops), lists.shape[1] * halves.shape[1]))
    flags = np.zeros(block * len(crops), bool)
    for first in range(0, len(crops), block):
        rows = slice(first, min(len(crops), first + block))
        entries = _grown(lists, mutual, halves, half_mutual, rows, flags)
        owners, columns = np.divmod(entries, len(crops))
        squares = _squared_distances(crops, owners + first, columns)
        raw = np.exp(-_scaled(squares, farthest[owners + first], config))
        sums = np.bincount(owners, raw, rows.stop - first).astype(np.float32)
        lengths.append(np.bincount(owners, minlength=rows.stop - first))
        members.append(columns.astype(np.int32))
        weights.append((raw / sums[owners]).astype(dtype))
    return _Sets(_starts(np.concatenate(lengths)), np.concatenate(members), np.concatenate(weights))


def _mutual(lists: Int32Array) -> BoolArray:
    """Tell of each entry of (n, m) neighbour `lists` whether its own list holds the row in turn."""
    mutual = np.empty(lists.shape, bool)
    block = _table_rows(lists.shape[1] ** 2)
    for first in range(0, len(lists), block):
        rows = np.arange(first, min(len(lists), first + block), dtype=np.int32)
        mutual[rows] = (lists[lists[rows]] == rows[:, None, None]).any(axis=2)
    return mutual


def _grown(
    lists: Int32Array, mutual: BoolArray, halves: Int32Array, half_mutual: BoolArray, rows: slice, flags: BoolArray
) -> Int64Array:
    """Return row · n + member, ascending, of the grown sets of `rows`; rows are counted from the first of them.

    A set takes in the half-size set of each of its members of which it holds more than two thirds already. The paper
    has "at least two thirds" (equation 5), all published code "more than".

    Args:
        lists: (n, m) neighbours.
        mutual: which of them are k-reciprocal.
        halves: the first of `lists`.
        half_mutual: which of them are k-reciprocal in `halves`.
        rows: the block.
        flags: (at least rows · n,) workspace, all False; left so.
    """
    near = lists[rows]
    bases = np.arange(len(near)) * len(lists)
    flags[(bases[:, None] + near)[mutual[rows]]] = True
    theirs = bases[:, None, None] + halves[near]
    counted = half_mutual[near] & mutual[rows, :, None]
    shared = (flags[theirs] & counted).sum(axis=2)
    taken = 3 * shared > 2 * counted.sum(axis=2)
    flags[theirs[counted & taken[:, :, None]]] = True
    entries = np.flatnonzero(flags)
    flags[entries] = False
    return entries


def _squared_distances(crops: _Crops, left: Int64Array, right: Int64Array) -> Float32Array:
    """Return |x - y|² of pairs of rows; `left` is ascending."""
    dots = np.empty(len(left), np.float32)
    bounds = [*np.flatnonzero(np.diff(left, prepend=-1)), len(left)]
    for start, stop in pairwise(bounds):
        dots[start:stop] = crops.features[right[start:stop]] @ crops.features[left[start]]
    return crops.squares[left] + crops.squares[right] - 2 * dots


def _scaled(squares: Float32Array, farthest: Float32Array, config: RerankConfig) -> Float32Array:
    """Return squared distances as `config` wants them; overwrites `squares`."""
    np.maximum(squares, 0, out=squares)
    if config.divide_by_max:
        squares /= farthest
    return np.square(squares, out=squares) if config.power == 2 else squares


def _averaged(sets: _Sets, nearest: Int32Array) -> _Sets:
    """Return for each row the mean of the sets of its (n, k2) `nearest` rows."""
    num, count = nearest.shape
    block = _table_rows(num)
    sums, flags = np.zeros(block * num, np.float32), np.zeros(block * num, bool)
    lengths, members, weights = [], [], []
    for first in range(0, num, block):
        near = nearest[first : first + block]
        owners, at = sets.entries(near.ravel())
        keys = owners // count * num + sets.members[at]
        np.add.at(sums, keys, sets.weights[at].astype(np.float32))
        flags[keys] = True
        entries = np.flatnonzero(flags)
        flags[entries] = False
        lengths.append(np.bincount(entries // num, minlength=len(near)))
        members.append((entries % num).astype(np.int32))
        weights.append((sums[entries] / np.float32(count)).astype(sets.weights.dtype))
        sums[entries] = 0
    return _Sets(_starts(np.concatenate(lengths)), np.concatenate(members), np.concatenate(weights))


def _table_rows(num_cells: int) -> int:
    """Return how many rows of `num_cells` are worked on together."""
    return min(512, max(1, _TABLE_CELLS // num_cells))


def _starts(lengths: npt.NDArray[np.intp]) -> Int64Array:
    return np.concatenate([[0], np.cumsum(lengths)])


def _holders(sets: _Sets, num_query: int) -> _Sets:
    """Return the sets turned round: set i holds the gallery crops, from 0, in whose set row i is."""
    first = sets.starts[num_query]
    members = sets.members[first:]
    owners = np.repeat(np.arange(len(sets.starts) - 1 - num_query, dtype=np.int32), np.diff(sets.starts[num_query:]))
    order = np.argsort(members, kind="stable")
    starts = _starts(np.bincount(members, minlength=len(sets.starts) - 1))
    return _Sets(starts, owners[order], sets.weights[first:][order])


def _own_distances(
    dots: Float32Array, crops: _Crops, rows: slice, config: RerankConfig, farthest: Float32Array
) -> Float32Array:
    """Return the distances that the result keeps a share of, from the products of `rows` with the gallery."""
    if config.mix_cosine:
        return np.subtract(1, dots)
    squares = dots * np.float32(-2)
    squares += crops.squares[rows, None]
    squares += crops.squares[len(crops) - dots.shape[1] :]
    return _scaled(squares, farthest[rows, None], config)


def _add_jaccard(
    distances: Float32Array, sets: _Sets, holders: _Sets, query: int, overlaps: FloatArray, share: float
) -> None:
    """Add `share` times the Jaccard distance of a query to all gallery crops to `distances`.

    The smaller weights of common members add up to s, all weights of both to 2: the distance is 1 - s / (2 - s).
    `overlaps` is a workspace of zeros, and left so.
    """
    own = slice(sets.starts[query], sets.starts[query + 1])
    owners, at = holders.entries(sets.members[own])
    gallery = holders.members[at]
    np.add.at(overlaps, gallery, np.minimum(sets.weights[own][owners], holders.weights[at]))
    common = overlaps[gallery]
    overlaps[gallery] = 0
    part = overlaps.dtype.type(share)
    sharing = distances[gallery] + part * (1 - common / (2 - common))
    distances += part
    distances[gallery] = sharing
