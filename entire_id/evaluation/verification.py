"""Scores with a threshold: is this the same person (ROC), and is this person in the gallery at all (open set)?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import Float64Array, FloatArray, Tensor, to_numpy
from entire_id.evaluation.blocks import checked_blocks
from entire_id.evaluation.counting import Kernel, Tie, count_negatives, take_positives
from entire_id.evaluation.labels import Labels, PairIndex
from entire_id.evaluation.protocols import Protocol, find_protocol

__all__ = ["OpenSet", "Roc", "evaluate_open_set", "evaluate_roc"]


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """How well one threshold tells pairs of one person from pairs of two, exact up to a rate of false positives.

    Attributes:
        max_fpr: the largest rate of false positives that it knows, in (0, 1].
        num_positive_pairs: pairs of query and kept gallery crop that show one person.
        num_negative_pairs: pairs that show two.
        positive_scores: (num_positive_pairs,) ascending.
        negative_scores: (floor(max_fpr · num_negative_pairs) + 1 at most,) the highest, descending.
    """

    max_fpr: float
    num_positive_pairs: int
    num_negative_pairs: int
    positive_scores: FloatArray
    negative_scores: FloatArray

    def threshold(self, fpr: float) -> float:
        """Return the score that so many negative pairs exceed, or just fewer; -inf where all may.

        Raises:
            EvaluationError: `fpr` is not in 0..max_fpr.
        """
        if not 0 <= fpr <= self.max_fpr:
            raise EvaluationError(f"a false positive rate of {fpr} is not in 0..{self.max_fpr}; give it in fprs")
        return _threshold(self.negative_scores, fpr, self.num_negative_pairs)

    def tpr(self, fpr: float) -> float:
        """Return the share of positive pairs above the threshold, in [0, 1].

        Raises:
            EvaluationError: `fpr` is not in 0..max_fpr.
        """
        passing = len(self.positive_scores) - np.searchsorted(self.positive_scores, self.threshold(fpr), "right")
        return float(passing / self.num_positive_pairs)

    def curve(self, num_points: int = 100) -> tuple[Float64Array, Float64Array]:
        """Return (num_points,) false positive rates, evenly spread in their logarithm, and the true positive rates."""
        fprs = np.geomspace(min(1 / self.num_negative_pairs, self.max_fpr), self.max_fpr, num_points)
        return fprs, np.array([self.tpr(min(fpr, self.max_fpr)) for fpr in fprs.tolist()])


def _threshold(descending: FloatArray, rate: float, number: int) -> float:
    """Return the lowest threshold that at most that share of `number` scores exceeds."""
    num_allowed = _num_allowed(rate, number)
    return -np.inf if num_allowed >= number else float(descending[num_allowed])


def _num_allowed(rate: float, number: int) -> int:
    """Return the largest count that is no larger share of `number` than `rate`: 29 of 100, where int(0.29 * 100) is 28.

    >>> _num_allowed(0.29, 100)
    29
    """
    count = int(rate * number) + 1
    while count / number > rate:
        count -= 1
    return count


def _with_threshold(protocol: str | Protocol) -> Protocol:
    """Return the protocol, and raise an EvaluationError where one threshold does not go with it."""
    found = find_protocol(protocol)
    if found.single_shot or found.pool_queries:
        raise EvaluationError(
            f"there are no scores with a threshold by protocol {found.name!r}: it "
            + ("draws galleries" if found.single_shot else "pools features, and scores hold none")
        )
    return found


def evaluate_roc(
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: str | Protocol = "market1501",
    *,
    fprs: Sequence[float] = (1e-4, 1e-3),
) -> Roc:
    """Return the ROC of all pairs of query and gallery crop that the protocol keeps.

    Queries that are junk are skipped. The scores of all positive pairs are held, and up to three times as many of
    negative pairs as the largest rate lets pass. Nothing is binned.

    Args:
        blocks: as for `evaluate_blocks`; `score_blocks` makes them from features.
        labels: whose the crops are.
        protocol: a name of `PROTOCOLS`, or a protocol.
        fprs: false positive rates that will be asked for, each in (0, 1].

    Raises:
        EvaluationError: the blocks are not what `evaluate_blocks` takes, there is no positive or no negative pair, a
            rate is not in (0, 1], or the protocol draws galleries or pools queries.
    """
    if not fprs or not all(0 < fpr <= 1 for fpr in fprs):
        raise EvaluationError(f"false positive rates {tuple(fprs)} are not all in (0, 1]")
    index = PairIndex(labels, _with_threshold(protocol))
    highest = _Highest(_num_allowed(max(fprs), len(labels.query_pids) * len(labels.gallery_pids)) + 1)
    positives = []
    for first, block in checked_blocks(blocks, labels):
        positives.append(take_positives(block, first, index)[2])
        for row, is_junk in zip(to_numpy(block), index.is_junk_query[first:], strict=False):
            if not is_junk:
                highest.add(row)
    scores = np.sort(np.concatenate(positives))
    if not len(scores) or not highest.total:
        raise EvaluationError(
            f"there are {len(scores):,} pairs that show one person and {highest.total:,} that show two; both are needed"
        )
    kept = highest.descending()[: _num_allowed(max(fprs), highest.total) + 1]
    return Roc(max(fprs), len(scores), highest.total, scores, kept)


class _Highest:
    """The highest of many scores.

    Attributes:
        total: scores seen, but for -inf.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._kept: list[npt.NDArray[Any]] = []
        self._num_kept = 0
        self._lowest = -np.inf
        self.total = 0

    def add(self, scores: FloatArray) -> None:
        """See some scores; -inf is none."""
        self.total += int(np.count_nonzero(scores > -np.inf))
        found = scores[scores > self._lowest]
        self._kept.append(found)
        self._num_kept += len(found)
        if self._num_kept > 2 * self._number + len(scores):
            kept = np.partition(np.concatenate(self._kept), -self._number)[-self._number :]
            self._kept, self._num_kept, self._lowest = [kept], len(kept), kept[0]

    def descending(self) -> FloatArray:
        """Return the highest, the very highest first."""
        return np.sort(np.concatenate(self._kept))[::-1][: self._number]


@dataclass(frozen=True, slots=True, eq=False)
class OpenSet:
    """How many queries are found, and how many strangers are taken for somebody, by one threshold.

    Detection and identification rate at a rate of false alarms, rank 1 by default (Phillips, Grother and Micheals,
    "Evaluation Methods in Face Recognition", Handbook of Face Recognition, 2011).

    Attributes:
        rank: a person counts as found among the first so many.
        num_known: queries with a positive.
        num_strangers: queries of identities that are not in the gallery.
        found_scores: scores of the first positives at a rank ≤ `rank`, ascending.
        alarm_scores: (num_strangers,) the highest score of each, descending.
    """

    rank: int
    num_known: int
    num_strangers: int
    found_scores: FloatArray
    alarm_scores: FloatArray

    def threshold(self, false_alarm_rate: float) -> float:
        """Return the score that such a share of strangers exceeds, or just fewer.

        Raises:
            EvaluationError: the rate is not in 0..1.
        """
        if not 0 <= false_alarm_rate <= 1:
            raise EvaluationError(f"a false alarm rate of {false_alarm_rate} is not in 0..1")
        return _threshold(self.alarm_scores, false_alarm_rate, self.num_strangers)

    def detection_rate(self, false_alarm_rate: float) -> float:
        """Return the share of known queries that are found above the threshold, in [0, 1].

        Raises:
            EvaluationError: the rate is not in 0..1.
        """
        lowest = np.searchsorted(self.found_scores, self.threshold(false_alarm_rate), "right")
        return float((len(self.found_scores) - lowest) / self.num_known)


def evaluate_open_set(
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: str | Protocol = "market1501",
    *,
    rank: int = 1,
    tie: Tie = "worst",
    kernel: Kernel = "auto",
) -> OpenSet:
    """Return how well queries are found when some queries are strangers; the strangers themselves set the threshold.

    Strangers are queries whose identity is nowhere in the gallery and is no junk. Queries whose person is there, but
    only among crops that the protocol ignores, are neither.

    Args:
        blocks: as for `evaluate_blocks`; `score_blocks` makes them from features.
        labels: whose the crops are.
        protocol: a name of `PROTOCOLS`, or a protocol.
        rank: a person counts as found among the first so many, at least 1.
        tie: see `Tie`.
        kernel: see `Kernel`.

    Raises:
        EvaluationError: the blocks are not what `evaluate_blocks` takes, there is no stranger or no known query, `rank`
            is not at least 1, or the protocol draws galleries or pools queries.
    """
    if rank < 1:
        raise EvaluationError(f"rank {rank} is not at least 1")
    index = PairIndex(labels, _with_threshold(protocol))
    is_stranger = (index.num_same_pid == 0) & ~index.is_junk_query
    found, alarms, num_known = [], [], 0
    for first, block in checked_blocks(blocks, labels):
        counts = count_negatives(block, first, index, tie, kernel)
        starts = counts.starts[counts.num_positives > 0]
        found.append(counts.scores[starts][counts.chosen[starts] < rank])
        num_known += len(starts)
        rows = np.flatnonzero(is_stranger[first : first + len(block)])
        alarms.append(to_numpy(block)[rows].max(axis=1, initial=-np.inf))
    num_strangers = int(is_stranger.sum())
    if not num_known or not num_strangers:
        raise EvaluationError(
            f"{num_known:,} queries have a positive and {num_strangers:,} are of people who are not in the gallery; an "
            "open set needs both: add query crops of other people"
        )
    return OpenSet(
        rank, num_known, num_strangers, np.sort(np.concatenate(found)), np.sort(np.concatenate(alarms))[::-1]
    )
