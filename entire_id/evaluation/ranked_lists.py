"""What stands first for a few queries, to be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entire_id.evaluation.arrays import FloatArray, Tensor, to_numpy
from entire_id.evaluation.blocks import checked_blocks
from entire_id.evaluation.counting import Tie, take_positives
from entire_id.evaluation.labels import Labels, PairIndex
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.scores import Scores

__all__ = ["RankedList", "choose_queries", "rank_blocks"]


@dataclass(frozen=True, slots=True, eq=False)
class RankedList:
    """The gallery crops that stand first for a query.

    Attributes:
        query: number of the query.
        columns: (k,) int64 gallery crops, the most alike first; none that the protocol ignores.
        similarities: (k,) their scores, descending.
        is_right: (k,) which of them show the query's person.
    """

    query: int
    columns: npt.NDArray[np.int64]
    similarities: FloatArray
    is_right: npt.NDArray[np.bool_]


def choose_queries(scores: Scores, num_queries: int, seed: int = 0) -> dict[str, list[int]]:
    """Return the numbers of the `best`, the `worst` and some `random` of the queries that have a positive.

    Of equal average precision the first comes first. The random ones are drawn from all, in the order of the queries.

    Args:
        scores: of all queries.
        num_queries: how many of each kind at most.
        seed: of the draw.
    """
    scored = np.flatnonzero(~np.isnan(scores.average_precision))
    precision = scores.average_precision[scored]
    drawn = np.random.default_rng(seed).choice(scored, min(num_queries, len(scored)), replace=False)
    return {
        "best": scored[np.argsort(-precision, kind="stable")[:num_queries]].tolist(),
        "worst": scored[np.argsort(precision, kind="stable")[:num_queries]].tolist(),
        "random": np.sort(drawn).tolist(),
    }


def rank_blocks(
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: str | Protocol = "market1501",
    *,
    num_ranks: int = 10,
    tie: Tie = "worst",
) -> list[RankedList]:
    """Return the ranked list of each query, without the crops that it ignores.

    A single-shot protocol draws its galleries from these lists; they are whole here.

    Args:
        blocks: as for `evaluate_blocks`, of the queries to be looked at alone; each block is overwritten.
        labels: whose the crops are, of the same queries: see `Labels.of_queries`.
        protocol: a name of `PROTOCOLS`, or a protocol.
        num_ranks: gallery crops in a list at most.
        tie: see `Tie`.

    Raises:
        EvaluationError: the blocks are not what `evaluate_blocks` takes, or the protocol needs what was not given.
    """
    index = PairIndex(labels, find_protocol(protocol))
    lists = []
    for first, block in checked_blocks(blocks, labels):
        rows, columns, similarities = take_positives(block, first, index)
        for row, scores in enumerate(to_numpy(block)):
            right = columns[rows == row]
            scores[right] = similarities[rows == row]
            is_right = np.zeros(len(scores), bool)
            is_right[right] = True
            order = _order(scores, is_right, tie)[:num_ranks]
            order = order[scores[order] > -np.inf]  # which marks what is ignored
            lists.append(RankedList(first + row, order, scores[order], is_right[order]))
    return lists


def _order(scores: FloatArray, is_right: npt.NDArray[np.bool_], tie: Tie) -> npt.NDArray[np.int64]:
    """Return the gallery crops by descending score; of equal scores, as the rule for ties says."""
    if tie == "stable":
        return np.argsort(-scores, kind="stable")
    return np.lexsort((is_right if tie == "worst" else ~is_right, -scores))
