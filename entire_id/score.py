"""Features on disk → scores."""

from __future__ import annotations

from pathlib import Path

from entire_id.evaluation.camera_pairs import CameraPairs, evaluate_camera_pairs
from entire_id.evaluation.counting import Tie
from entire_id.evaluation.features import score_blocks
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import Protocol
from entire_id.evaluation.ranking import evaluate
from entire_id.evaluation.scores import Scores
from entire_id.loading.embed import Features, read_features
from entire_id.records import Progress, no_progress

__all__ = ["score_camera_pairs", "score_features"]


def score_features(
    folder: str | Path,
    features: str | Path,
    progress: Progress = no_progress,
    *,
    protocol: str | Protocol = "market1501",
    tie: Tie = "worst",
    max_rank: int = 50,
) -> Scores:
    """Return the scores of stored features: query against gallery of a packed data set.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        progress: told how far it is.
        protocol: see `evaluate`.
        tie: see `evaluate`.
        max_rank: see `evaluate`.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, FeaturesError: see `read_features`.
        EvaluationError: see `evaluate`.
    """
    query, gallery = _query_and_gallery(folder, features)
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
    folder: str | Path, features: str | Path, *, protocol: str | Protocol = "market1501", tie: Tie = "worst"
) -> CameraPairs:
    """Return the scores of stored features from each camera to each other; see `score_features`."""
    query, gallery = _query_and_gallery(folder, features)
    labels = Labels.of(
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        query_columns=query.columns,
        gallery_columns=gallery.columns,
    )
    return evaluate_camera_pairs(score_blocks(query.values, gallery.values), labels, protocol, tie=tie)


def _query_and_gallery(folder: str | Path, features: str | Path) -> tuple[Features, Features]:
    return read_features(folder, "query", features), read_features(folder, "gallery", features)
