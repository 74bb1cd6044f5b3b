"""Features on disk → scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import group_rows
from entire_id.evaluation.camera_pairs import CameraPairCounter, CameraPairs, why_no_camera_pairs
from entire_id.evaluation.counting import Tie
from entire_id.evaluation.features import pool_features, score_blocks
from entire_id.evaluation.labels import Labels, PairIndex, why_none_valid
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.ranked_lists import RankedList, rank_blocks
from entire_id.evaluation.ranking import evaluate, evaluate_blocks
from entire_id.evaluation.reranking import RerankConfig, expand_queries, rerank
from entire_id.evaluation.scores import Scores
from entire_id.loading.embed import Features, crop_columns, read_features
from entire_id.loading.reader import CropReader
from entire_id.records import Progress, no_progress

__all__ = [
    "CAMERA_PAIR",
    "QueryGallery",
    "ScoringConfig",
    "check_columns",
    "rank_features",
    "read_labels",
    "read_query_gallery",
    "score",
    "score_features",
    "score_with_camera_pairs",
]

CAMERA_PAIR = "camera_pair"
"""What scores by camera of the query and camera of the gallery are called where columns are named."""


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """How stored features are scored.

    Attributes:
        protocol: see `evaluate`.
        tie: see `evaluate`.
        max_rank: see `evaluate`.
        reranking: how to re-rank; None scores the ranking as it is.
        expand: expand each query by that many of its nearest gallery crops first; 0 leaves queries as they are.
    """

    protocol: str | Protocol = "market1501"
    tie: Tie = "worst"
    max_rank: int = 50
    reranking: RerankConfig | None = None
    expand: int = 0

    def __post_init__(self) -> None:
        protocol = find_protocol(self.protocol)
        if protocol.pool_queries and self.reranking is not None:
            raise EvaluationError(
                f"protocol {protocol.name!r} pools the features of queries, and does not go with re-ranking"
            )


@dataclass(frozen=True, slots=True, eq=False)
class QueryGallery:
    """Stored features of query and gallery.

    Attributes:
        query: those of the queries.
        gallery: those of the gallery.
        labels: whose the crops are.
    """

    query: Features
    gallery: Features
    labels: Labels


def read_query_gallery(folder: str | Path, features: str | Path) -> QueryGallery:
    """Return the stored features of query and gallery.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, FeaturesError, CamerasFileError: see `read_features`.
    """
    query, gallery = read_features(folder, "query", features), read_features(folder, "gallery", features)
    return QueryGallery(query, gallery, _labels_of(query, gallery))


def read_labels(folder: str | Path) -> Labels:
    """Return whose the crops of query and gallery are, without features.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, CamerasFileError: see `read_features`.
    """
    with CropReader(folder, "query") as query, CropReader(folder, "gallery") as gallery:
        return _labels_of(query, gallery)


def _labels_of(query: Features | CropReader, gallery: Features | CropReader) -> Labels:
    columns = [crop_columns(of) if isinstance(of, CropReader) else of.columns for of in (query, gallery)]
    pids, camids = (query.pids, gallery.pids), (query.camids, gallery.camids)
    return Labels.of(*pids, *camids, query_columns=columns[0], gallery_columns=columns[1])


def check_columns(labels: Labels, columns: Sequence[str], protocol: str | Protocol) -> None:
    """Make sure, before anything is scored, that there are scores by this protocol and these columns.

    Raises:
        EvaluationError: no query has a right crop, the protocol needs to know more of the crops, there is no such
            column, it cannot be put into groups, or there are no scores by camera pair.
    """
    index = PairIndex(labels, find_protocol(protocol))
    if not index.num_positives().any():
        raise EvaluationError(why_none_valid(index))
    known = ("camera", CAMERA_PAIR, "num_positives", *labels.query_columns)
    for column in columns:
        if column not in known:
            raise EvaluationError(f"the queries have no column {column!r}; there is {', '.join(known)}")
        if column in labels.query_columns:
            group_rows(labels.query_columns[column], num_bins=1)
    if CAMERA_PAIR in columns and (why := why_no_camera_pairs(labels, find_protocol(protocol))):
        raise EvaluationError(why)


def score(crops: QueryGallery, config: ScoringConfig | None = None, progress: Progress = no_progress) -> Scores:
    """Return the scores of stored features: query against gallery.

    Raises:
        EvaluationError: see `evaluate`.
    """
    config = config or ScoringConfig()
    if config.reranking is not None:
        return evaluate_blocks(_blocks(crops, config, progress), crops.labels, **_rule(config), progress=progress)
    labels = crops.labels
    return evaluate(
        _query_values(crops, config),
        crops.gallery.values,
        labels.query_pids,
        labels.gallery_pids,
        labels.query_camids,
        labels.gallery_camids,
        query_columns=labels.query_columns,
        gallery_columns=labels.gallery_columns,
        **_rule(config),
        progress=progress,
    )


def score_with_camera_pairs(
    crops: QueryGallery, config: ScoringConfig | None = None, progress: Progress = no_progress
) -> tuple[Scores, CameraPairs | None]:
    """Return what `score` does, and the scores from each camera to each other, of one and the same ranking.

    The latter are None where there are none: see `why_no_camera_pairs`.

    Raises:
        EvaluationError: see `evaluate`.
    """
    config = config or ScoringConfig()
    if why_no_camera_pairs(crops.labels, find_protocol(config.protocol)):
        return score(crops, config, progress), None
    counter = CameraPairCounter(crops.labels, config.protocol, config.tie)
    blocks = _watched(_blocks(crops, config, progress), counter)
    scores = evaluate_blocks(blocks, crops.labels, **_rule(config), progress=progress)
    return scores, counter.pairs()


def score_features(
    folder: str | Path,
    features: str | Path,
    config: ScoringConfig | None = None,
    progress: Progress = no_progress,
) -> Scores:
    """Return the scores of the features in a folder; see `read_query_gallery` and `score`."""
    return score(read_query_gallery(folder, features), config, progress)


def _rule(config: ScoringConfig) -> dict[str, Any]:
    """Return what `evaluate` and `evaluate_blocks` both take."""
    return {"protocol": config.protocol, "tie": config.tie, "max_rank": config.max_rank}


def _query_values(crops: QueryGallery, config: ScoringConfig) -> npt.NDArray[np.float32]:
    if not config.expand:
        return crops.query.values
    expanded: npt.NDArray[np.float32] = expand_queries(crops.query.values, crops.gallery.values, config.expand)
    return expanded


def _blocks(
    crops: QueryGallery, config: ScoringConfig, progress: Progress
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    query, gallery = _query_values(crops, config), crops.gallery.values
    if config.reranking is None:
        return score_blocks(query, gallery)
    return rerank(query, gallery, config.reranking, progress=progress)


def _watched(
    blocks: Iterable[tuple[int, npt.NDArray[np.float32]]], counter: CameraPairCounter
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the blocks, once the counter has seen them."""
    for first, block in blocks:
        counter.add(first, block)
        yield first, block


def rank_features(crops: QueryGallery, scores: Scores, queries: Sequence[int], num_ranks: int = 10) -> list[RankedList]:
    """Return the ranked lists of some queries, by the protocol and the rule for ties of their scores.

    They are computed anew for these queries alone, so crops whose scores differ in the last bit may stand otherwise
    than in the scores.

    Args:
        crops: stored features.
        scores: what `score` gave for them.
        queries: numbers of the queries in the scores.
        num_ranks: gallery crops in a list at most.

    Returns:
        Of each query its list, whose `query` is the row of its crop in the split: of pooled crops, the first.
    """
    if not len(queries):
        return []
    query, chosen = crops.query, np.asarray(queries, np.int64)
    values, rows = query.values, np.arange(len(query.values))
    if scores.protocol.pool_queries:
        values, rows = pool_features(values, query.pids.astype(np.int64), query.camids.astype(np.int64))
    labels = scores.labels.of_queries(chosen)
    blocks = score_blocks(values[chosen], crops.gallery.values)
    lists = rank_blocks(blocks, labels, scores.protocol, num_ranks=num_ranks, tie=scores.tie)
    return [replace(one, query=int(rows[chosen[one.query]])) for one in lists]
