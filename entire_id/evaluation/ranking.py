"""Re-identification scores by the field's rule, exact, block by block.

For a query, gallery crops of the same person under the same camera are ignored, junk is ignored, and queries that are
left without a positive are skipped and counted (Zheng et al., "Scalable Person Re-identification: A Benchmark",
ICCV 2015). Nothing is sorted but the positives: a positive's rank is one more than the number of kept gallery crops
that score at least as high, so a tie counts against the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.records import JUNK_PID, Progress, no_progress

__all__ = ["Scores", "evaluate"]

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

_BLOCK_BYTES = 32 << 20
# Matrix products treat the rows at an odd end by another routine, in which equal rows need not score the same: both
# sides are padded with zero rows to a multiple of this, and multiplied in blocks of a multiple of it.
_ROW_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """How well features find people.

    Attributes:
        mAP: mean average precision over valid queries, in [0, 1].
        mINP: mean inverse negative penalty over valid queries, in [0, 1] (Ye et al., "Deep Learning for Person
            Re-identification: A Survey and Outlook", TPAMI 2021).
        cmc: (max_rank,) share of valid queries whose first positive is at rank ≤ 1, 2, …; constant beyond the gallery.
        average_precision: (num_query,) AP of each query, NaN where it was skipped.
        num_query: queries given.
        num_valid_query: queries with at least one positive.
        num_gallery: gallery crops given.
    """

    mAP: float  # noqa: N815 the field's own spelling
    mINP: float  # noqa: N815
    cmc: npt.NDArray[np.float64]
    average_precision: npt.NDArray[np.float64]
    num_query: int
    num_valid_query: int
    num_gallery: int

    def rank(self, k: int) -> float:
        """Return the share of valid queries with a positive among the first `k`, in [0, 1].

        Raises:
            EvaluationError: `k` is not in 1..max_rank.
        """
        if not 1 <= k <= len(self.cmc):
            raise EvaluationError(f"rank {k} is not in 1..{len(self.cmc)}; evaluate with max_rank={k}")
        return float(self.cmc[k - 1])

    def to_dict(self) -> dict[str, float | int]:
        """Return the scores as plain numbers, ready for JSON."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10) if k <= len(self.cmc)}
        counts = {name: getattr(self, name) for name in ("num_query", "num_valid_query", "num_gallery")}
        return {"mAP": self.mAP, **ranks, "mINP": self.mINP, **counts}


def evaluate(  # noqa: PLR0913 six arrays are what it is about
    query_features: Floats,
    gallery_features: Floats,
    query_pids: Integers,
    gallery_pids: Integers,
    query_camids: Integers,
    gallery_camids: Integers,
    *,
    max_rank: int = 50,
    progress: Progress = no_progress,
) -> Scores:
    """Return mAP, CMC and mINP of cosine similarity between features.

    Args:
        query_features: (q, d) float.
        gallery_features: (g, d) float.
        query_pids: (q,) int identities; -1 is junk.
        gallery_pids: (g,) int identities; -1 is junk.
        query_camids: (q,) int cameras.
        gallery_camids: (g,) int cameras.
        max_rank: length of the CMC curve, at least 1.
        progress: told how far it is.

    Raises:
        EvaluationError: shapes or lengths disagree, a feature is not finite or is all zero, no query has a positive, or
            `max_rank` is not at least 1.

    Example:
        >>> features = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> evaluate(features, features, np.array([3, 4]), np.array([3, 4]), np.array([0, 0]), np.array([1, 1])).mAP
        1.0
    """
    query, gallery = _unit(query_features, "query"), _unit(gallery_features, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise EvaluationError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")
    labels = _Labels(
        _labels(query_pids, len(query_features), "query_pids"),
        _labels(gallery_pids, len(gallery_features), "gallery_pids"),
        _labels(query_camids, len(query_features), "query_camids"),
        _labels(gallery_camids, len(gallery_features), "gallery_camids"),
    )
    if max_rank < 1:
        raise EvaluationError(f"max_rank {max_rank} is not at least 1")
    num_query, num_gallery = len(labels.query_pids), len(labels.gallery_pids)
    precision, penalty = np.full(num_query, np.nan), np.full(num_query, np.nan)
    first_rank = np.zeros(num_query, np.int64)
    for number, ranks in _ranks(query, gallery, labels, progress):
        hits = np.arange(1, len(ranks) + 1)
        precision[number] = (hits / ranks).mean()
        penalty[number] = len(ranks) / ranks[-1]
        first_rank[number] = ranks[0]
    valid = first_rank > 0
    if not valid.any():
        raise EvaluationError(_why_none_valid(labels))
    counts = np.bincount(np.minimum(first_rank[valid], max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return Scores(
        mAP=float(precision[valid].mean()),
        mINP=float(penalty[valid].mean()),
        cmc=np.cumsum(counts) / valid.sum(),
        average_precision=precision,
        num_query=num_query,
        num_valid_query=int(valid.sum()),
        num_gallery=num_gallery,
    )


@dataclass(frozen=True, slots=True)
class _Labels:
    query_pids: npt.NDArray[np.int64]
    gallery_pids: npt.NDArray[np.int64]
    query_camids: npt.NDArray[np.int64]
    gallery_camids: npt.NDArray[np.int64]


def _unit(features: Floats, name: str) -> npt.NDArray[np.float32]:
    """Return the rows of `features` at length 1, float32, followed by zero rows up to a multiple of `_ROW_MULTIPLE`."""
    features = np.asarray(features)
    if features.ndim != 2 or not len(features) or not np.issubdtype(features.dtype, np.floating):
        raise EvaluationError(f"{name}_features are {features.dtype} {features.shape}; expected float (rows, columns)")
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise EvaluationError(f"{len(bad)} {name}_features are NaN, infinite or all zero; the first is row {bad[0]}")
    unit = np.zeros((-(-len(features) // _ROW_MULTIPLE) * _ROW_MULTIPLE, features.shape[1]), np.float32)
    np.divide(features, lengths[:, None], out=unit[: len(features)], casting="same_kind")
    return unit


def _labels(values: Integers, length: int, name: str) -> npt.NDArray[np.int64]:
    values = np.asarray(values)
    if values.shape != (length,) or not np.issubdtype(values.dtype, np.integer):
        raise EvaluationError(f"{name} are {values.dtype} {values.shape}; expected integers ({length},)")
    return values.astype(np.int64)


def _ranks(
    query: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], labels: _Labels, progress: Progress
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield (query number, ranks of its positives, ascending, from 1) of every query that has positives."""
    by_pid = np.argsort(labels.gallery_pids, kind="stable")
    sorted_pids = labels.gallery_pids[by_pid]
    starts = np.searchsorted(sorted_pids, labels.query_pids, "left")
    stops = np.searchsorted(sorted_pids, labels.query_pids, "right")
    junk = np.flatnonzero(labels.gallery_pids == JUNK_PID)
    num_query, num_gallery = len(labels.query_pids), len(labels.gallery_pids)
    block = max(1, _BLOCK_BYTES // (4 * len(gallery) * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    for first in range(0, num_query, block):
        scores = query[first : first + block] @ gallery.T
        scores[:, junk] = -np.inf
        scores[:, num_gallery:] = -np.inf
        progress("evaluating", min(first + block, num_query), num_query)
        for number, row in enumerate(scores[: num_query - first], first):
            same_pid = by_pid[starts[number] : stops[number]]
            other_camera = labels.gallery_camids[same_pid] != labels.query_camids[number]
            positives = same_pid[other_camera]
            if len(positives) and labels.query_pids[number] != JUNK_PID:
                yield number, _ranks_of(row, positives, same_pid)


def _ranks_of(row: npt.NDArray[np.float32], positives: Integers, same_pid: Integers) -> npt.NDArray[np.int64]:
    """Return the ranks of `positives` among themselves and all rows but `same_pid`; overwrites `row`."""
    scores = np.sort(row[positives])
    row[same_pid] = -np.inf
    reaching = row[row >= scores[0]]
    not_above = np.searchsorted(scores, reaching, "right")  # how many positives each negative ties with or beats
    beaten = np.bincount(not_above, minlength=len(scores) + 1)
    negatives_above = np.cumsum(beaten[::-1])[: len(scores)]
    ranks: npt.NDArray[np.int64] = np.arange(1, len(scores) + 1) + negatives_above
    return ranks


def _why_none_valid(labels: _Labels) -> str:
    """Return why no query has a positive, in a sentence that says what to do."""
    people = np.intersect1d(labels.query_pids, labels.gallery_pids)
    people = people[people != JUNK_PID]
    if not len(people):
        return (
            f"no query identity is in the gallery: query pids are {_span(labels.query_pids)}, gallery pids "
            f"{_span(labels.gallery_pids)}. Do both come from the same data set?"
        )
    cameras = np.union1d(labels.query_camids, labels.gallery_camids)
    if len(cameras) == 1:
        return (
            f"every crop has camera {cameras[0]}, and crops of the query's own camera are ignored. Were camera numbers "
            "read from the names rightly? c021 is camera 21; a pattern for one digit reads 0"
        )
    return (
        f"the {len(people)} query identities that are in the gallery were all seen there by the query's own camera "
        "alone, and such crops are ignored"
    )


def _span(values: Integers) -> str:
    return f"{values.min()}..{values.max()}"
