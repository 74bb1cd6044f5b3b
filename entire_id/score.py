"""Features on disk → scores."""

from __future__ import annotations

from pathlib import Path

from entire_id.evaluation.ranking import Scores, evaluate
from entire_id.loading.embed import read_features
from entire_id.records import Progress, no_progress

__all__ = ["score_features"]


def score_features(folder: str | Path, features: str | Path, progress: Progress = no_progress) -> Scores:
    """Return the scores of stored features: query against gallery of a packed data set.

    Args:
        folder: a packed data set.
        features: folder that `embed` wrote.
        progress: told how far it is.

    Raises:
        DatasetNotFoundError, SplitNotFoundError, ManifestError, FeaturesError: see `read_features`.
        EvaluationError: see `evaluate`.
    """
    query, gallery = (read_features(folder, split, features) for split in ("query", "gallery"))
    return evaluate(
        query.values,
        gallery.values,
        query.pids,
        gallery.pids,
        query.camids,
        gallery.camids,
        progress=progress,
    )
