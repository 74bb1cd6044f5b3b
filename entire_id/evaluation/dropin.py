"""The calls that people know from other code bases, on top of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import FloatArray, to_numpy
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import Protocol
from entire_id.evaluation.ranking import evaluate, evaluate_blocks
from entire_id.evaluation.scores import Scores

__all__ = ["FeatureAccumulator", "compute_metrics", "evaluate_rank"]

_ROWS_AT_ONCE = 256


def evaluate_rank(
    distmat: npt.ArrayLike,
    q_pids: npt.ArrayLike,
    g_pids: npt.ArrayLike,
    q_camids: npt.ArrayLike,
    g_camids: npt.ArrayLike,
    max_rank: int = 50,
) -> tuple[npt.NDArray[np.float64], float]:
    """Return CMC and mAP of a matrix of distances, as torchreid's function of this name does.

    Unlike it, it takes galleries smaller than `max_rank`, counts ties against the model, ignores junk, and says why
    where no query can be scored. It knows neither `use_metric_cuhk03`, for which there is `evaluate_blocks` by the
    protocol `single_gallery_shot`, nor `use_cython`. fast-reid's function of this name returns the AP and the INP of
    each valid query instead of the mAP: `Scores.average_precision` and `inverse_penalty`, less what is NaN.

    Args:
        distmat: (q, g) float distances, lower is more alike.
        q_pids: (q,) int identities of the queries.
        g_pids: (g,) int identities of the gallery.
        q_camids: (q,) int cameras of the queries.
        g_camids: (g,) int cameras of the gallery.
        max_rank: length of the CMC curve.

    Returns:
        (max_rank,) CMC and mAP, in [0, 1].

    Raises:
        EvaluationError: see `evaluate_blocks`.

    Example:
        >>> cmc, mAP = evaluate_rank([[0.1, 0.2, 0.3]], [7], [8, 7, 7], [0], [1, 1, 0], max_rank=2)
        >>> cmc.tolist(), mAP
        ([0.0, 1.0], 0.5)
    """
    distances = to_numpy(distmat)
    if distances.ndim != 2:
        raise EvaluationError(f"distmat has shape {distances.shape}; expected (queries, gallery crops)")
    labels = Labels.of(q_pids, g_pids, q_camids, g_camids)
    scores = evaluate_blocks(_negated(distances), labels, max_rank=max_rank)
    return scores.cmc, scores.mAP


def _negated(distances: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Yield blocks of similarities. Distances keep their precision: rounding would make ties."""
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    for first in range(0, len(distances), _ROWS_AT_ONCE):
        yield first, np.negative(distances[first : first + _ROWS_AT_ONCE], dtype=dtype)


class FeatureAccumulator:
    """Collects features batch by batch and scores them, like `R1_mAP_eval` of the ReID baselines.

    The first `num_query` rows of the data set are the queries, the others the gallery. In distributed evaluation give
    the rows of each batch, `merge` what the processes have collected, and compute in one of them: rows that a sampler
    repeated to make the shares equal count once.

    Args:
        num_query: rows of queries.
        num_rows: rows of queries and gallery together. Given, rows that are missing at the end are noticed, too.
        max_rank: length of the CMC curve.
        protocol: a name of `PROTOCOLS`, or a protocol.

    Example:
        >>> accumulator = FeatureAccumulator(num_query=1)
        >>> accumulator.update((np.eye(3), [7, 7, 8], [0, 1, 1]))
        >>> accumulator.compute().mAP
        0.5
    """

    def __init__(
        self,
        num_query: int,
        *,
        num_rows: int | None = None,
        max_rank: int = 50,
        protocol: str | Protocol = "market1501",
    ) -> None:
        self.num_query, self.num_rows, self.max_rank, self.protocol = num_query, num_rows, max_rank, protocol
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._batches: list[tuple[npt.NDArray[Any], ...]] = []
        self._is_numbered: bool | None = None

    def update(
        self, batch: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], rows: npt.ArrayLike | None = None
    ) -> None:
        """Add a batch.

        Args:
            batch: (n, d) float features, n identities, n cameras; arrays, lists or tensors on any device.
            rows: (n,) int place of each in the data set; by default batches follow one another.

        Raises:
            EvaluationError: lengths differ, or rows are given for some batches only.
        """
        features, pids, camids = (to_numpy(values) for values in batch)
        if self._is_numbered not in (None, rows is not None):
            raise EvaluationError("rows were given for some batches and not for others; give them always, or never")
        self._is_numbered = rows is not None
        start = sum(len(one[0]) for one in self._batches)
        places = np.arange(start, start + len(features)) if rows is None else to_numpy(rows)
        if not len(features) == len(pids) == len(camids) == len(places):
            raise EvaluationError(
                f"a batch has {len(features)} features, {len(pids)} pids, {len(camids)} camids and {len(places)} rows"
            )
        self._batches.append((features, pids, camids, places))

    def merge(self, other: FeatureAccumulator) -> None:
        """Add what another has collected, of another process for example: it can be pickled.

        Raises:
            EvaluationError: one of the two was not told the rows, so nobody knows which are the queries.
        """
        if not other._batches:
            return
        if (self._batches and not self._is_numbered) or not other._is_numbered:
            raise EvaluationError(
                "what several processes collected can be merged only if update was given the rows of each batch"
            )
        self._batches += other._batches
        self._is_numbered = True

    def compute(self) -> Scores:
        """Return the scores of everything collected.

        Raises:
            EvaluationError: nothing was collected, rows are missing, or see `evaluate`.
        """
        if not self._batches:
            raise EvaluationError("no batch was given; call update before compute")
        places = np.concatenate([batch[3] for batch in self._batches])
        places, order = np.unique(places, return_index=True)
        num_rows = int(places[-1]) + 1 if self.num_rows is None else self.num_rows
        if not np.array_equal(places, np.arange(num_rows)):
            raise EvaluationError(
                f"{len(places):,} different rows were given, from row {places[0]:,} to row {places[-1]:,}; expected "
                f"every row of {num_rows:,}. Merge the accumulators of all processes"
            )
        features, pids, camids = (np.concatenate([batch[part] for batch in self._batches])[order] for part in range(3))
        number = self.num_query
        return evaluate(
            features[:number],
            features[number:],
            pids[:number],
            pids[number:],
            camids[:number],
            camids[number:],
            max_rank=self.max_rank,
            protocol=self.protocol,
        )


def compute_metrics(
    pids: npt.ArrayLike, camids: npt.ArrayLike, num_query: int, *, protocol: str | Protocol = "market1501"
) -> Callable[[Any], Mapping[str, float]]:
    """Return a function for the `compute_metrics` of the `Trainer` of transformers.

    The evaluation set holds the queries, then the gallery; the model's first output is the features.

    Args:
        pids: (q + g,) int identities of the evaluation set.
        camids: (q + g,) int cameras.
        num_query: q.
        protocol: a name of `PROTOCOLS`, or a protocol.

    Returns:
        A function that takes something with `predictions`, and returns mAP, rank1, rank5, rank10 and mINP.

    Example:
        >>> from types import SimpleNamespace
        >>> metrics = compute_metrics([7, 7, 8], [0, 1, 1], num_query=1)
        >>> metrics(SimpleNamespace(predictions=np.eye(3)))["mAP"]
        0.5
    """

    def score(predicted: Any) -> dict[str, float]:  # noqa: ANN401 a class of a library that need not be installed
        features = predicted.predictions
        features = features[0] if isinstance(features, tuple | list) else features
        accumulator = FeatureAccumulator(num_query, protocol=protocol)
        accumulator.update((features, pids, camids))
        scores = accumulator.compute().to_dict()
        return {name: scores[name] for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}

    return score
