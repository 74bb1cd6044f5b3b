"""Features on disk → scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from entire_id.errors import EvaluationError
from entire_id.evaluation.camera_pairs import CameraPairs, evaluate_camera_pairs
from entire_id.evaluation.counting import Tie
from entire_id.evaluation.features import pool_features, score_blocks
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.ranked_lists import RankedList, rank_blocks
from entire_id.evaluation.ranking import evaluate, evaluate_blocks
from entire_id.evaluation.reranking import RerankConfig, expand_queries, rerank
from entire_id.evaluation.scores import Scores
from entire_id.loading.embed import Features, read_features
from entire_id.records import Progress, no_progress

__all__ = ["rank_features", "score_camera_pairs", "score_features"]


def score_features(  # noqa: PLR0913 options of one thing
    folder: str | Path,
    features: str | Path,
    progress: Progress = no_progress,
    *,
    protocol: str | Protocol = "market1501",
    tie: Tie = "worst",
    max_rank: int = 50,
    reranking: RerankConfig | None = None,
    expand: int = 0,
) -> Scores:
    """Return the scores of stored features: query against gallery of a packed data set.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        progress: told how far it is.
        protocol: see `evaluate`.
        tie: see `evaluate`.
        max_rank: see `evaluate`.
        reranking: how to re-rank; None scores the ranking as it is.
        expand: expand each query by that many of its nearest gallery crops first; 0 leaves queries as they are.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, FeaturesError: see `read_features`.
        EvaluationError: see `evaluate`; or the protocol pools features, and re-ranking gives none.
    """
    query, gallery = _query_and_gallery(folder, features, expand)
    if reranking is not None:
        _refuse_pooling(protocol)
        blocks = rerank(query.values, gallery.values, reranking, progress=progress)
        labels = _labels(query, gallery)
        return evaluate_blocks(blocks, labels, protocol, tie=tie, max_rank=max_rank, progress=progress)
    return evaluate(
        query.values,
        gallery.values,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        protocol=protocol,
        tie=tie,
        max_rank=max_rank,
        query_columns=query.columns,
        gallery_columns=gallery.columns,
        progress=progress,
    )


def score_camera_pairs(
    folder: str | Path,
    features: str | Path,
    *,
    protocol: str | Protocol = "market1501",
    tie: Tie = "worst",
    reranking: RerankConfig | None = None,
    expand: int = 0,
) -> CameraPairs:
    """Return the scores of stored features from each camera to each other; see `score_features`."""
    query, gallery = _query_and_gallery(folder, features, expand)
    if reranking is None:
        blocks = score_blocks(query.values, gallery.values)
    else:
        blocks = rerank(query.values, gallery.values, reranking)
    return evaluate_camera_pairs(blocks, _labels(query, gallery), protocol, tie=tie)


def _query_and_gallery(folder: str | Path, features: str | Path, expand: int = 0) -> tuple[Features, Features]:
    query, gallery = read_features(folder, "query", features), read_features(folder, "gallery", features)
    if expand:
        query = replace(query, values=expand_queries(query.values, gallery.values, expand))
    return query, gallery


def _labels(query: Features, gallery: Features) -> Labels:
    return Labels.of(
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        query_columns=query.columns,
        gallery_columns=gallery.columns,
    )


def rank_features(
    folder: str | Path, features: str | Path, scores: Scores, queries: Sequence[int], num_ranks: int = 10
) -> list[RankedList]:
    """Return the ranked lists of some queries, by the protocol and the rule for ties of their scores.

    They are computed anew for these queries alone, so crops whose scores differ in the last bit may stand otherwise
    than in the scores.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        scores: what `score_features` gave for these features.
        queries: numbers of the queries in the scores.
        num_ranks: gallery crops in a list at most.

    Returns:
        Of each query its list, whose `query` is the row of its crop in the split: of pooled crops, the first.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, FeaturesError: see `read_features`.
    """
    if not len(queries):
        return []
    query, gallery = _query_and_gallery(folder, features)
    chosen = np.asarray(queries, np.int64)
    values, crops = query.values, np.arange(len(query.values))
    if scores.protocol.pool_queries:
        values, crops = pool_features(values, query.pids.astype(np.int64), query.camids.astype(np.int64))
    labels = scores.labels.of_queries(chosen)
    blocks = score_blocks(values[chosen], gallery.values)
    lists = rank_blocks(blocks, labels, scores.protocol, num_ranks=num_ranks, tie=cast("Tie", scores.tie))
    return [replace(one, query=int(crops[chosen[one.query]])) for one in lists]


def _refuse_pooling(protocol: str | Protocol) -> None:
    """Raise an EvaluationError where the features would have to be pooled first."""
    found = find_protocol(protocol)
    if found.pool_queries:
        raise EvaluationError(f"protocol {found.name!r} pools the features of queries, and does not go with re-ranking")
