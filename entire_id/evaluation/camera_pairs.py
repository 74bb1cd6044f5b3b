"""Scores from each camera to each other camera."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import Tensor, to_numpy
from entire_id.evaluation.blocks import checked_blocks
from entire_id.evaluation.counting import Kernel, Tie, count_negatives
from entire_id.evaluation.labels import Labels, PairIndex
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.tally import Part, tally

__all__ = ["MAX_CAMERAS", "CameraPairCounter", "CameraPairs", "evaluate_camera_pairs", "why_no_camera_pairs"]

Floats = npt.NDArray[np.float64]

MAX_CAMERAS = 200  # on a side: more pairs than anybody reads, and each camera has its own index of the queries


@dataclass(frozen=True, slots=True, eq=False)
class CameraPairs:
    """Scores of the queries of each camera, searching the gallery crops of each camera alone.

    Attributes:
        query_camids: (a,) int64 cameras of queries, ascending.
        gallery_camids: (b,) int64 cameras of the gallery, ascending.
        num_valid_query: (a, b) int64 queries with a positive there.
        mAP: (a, b) mean over these; NaN where there is none.
        rank1: (a, b) share of these whose first positive is at rank 1; likewise.
    """

    query_camids: npt.NDArray[np.int64]
    gallery_camids: npt.NDArray[np.int64]
    num_valid_query: npt.NDArray[np.int64]
    mAP: Floats  # noqa: N815 the field's own spelling
    rank1: Floats

    def to_dict(self) -> dict[str, Any]:
        """Return the pairs that have a valid query as plain values, by names such as `3→21`."""
        return {
            f"{self.query_camids[a]}→{self.gallery_camids[b]}": {
                "num_valid_query": int(self.num_valid_query[a, b]),
                "mAP": float(self.mAP[a, b]),
                "rank1": float(self.rank1[a, b]),
            }
            for a, b in np.argwhere(self.num_valid_query).tolist()
        }

    def table(self) -> str:
        """Return the mAP as lines of text, in percent: query cameras in rows, gallery cameras in columns."""
        lines = ["mAP, %   " + " ".join(f"{camid:>5}" for camid in self.gallery_camids)]
        for camid, row in zip(self.query_camids, self.mAP, strict=True):
            cells = ("    ·" if np.isnan(value) else f"{100 * value:5.1f}" for value in row)
            lines.append(f"{camid:<8} " + " ".join(cells))
        return "\n".join(lines)


def why_no_camera_pairs(labels: Labels, protocol: Protocol) -> str:
    """Return why there are no scores by camera pair, in a sentence without its full stop; nothing where there are."""
    if not labels.has_cameras:
        return "there are no scores by camera pair without cameras"
    if protocol.single_shot or protocol.pool_queries:
        how = "draws galleries" if protocol.single_shot else "pools queries"
        return f"there are no scores by camera pair, for protocol {protocol.title!r} {how}"
    numbers = len(np.unique(labels.query_camids)), len(np.unique(labels.gallery_camids))
    if max(numbers) > MAX_CAMERAS:
        return (
            f"there are no scores by camera pair, for the queries have {numbers[0]:,} cameras and the gallery "
            f"{numbers[1]:,}; at most {MAX_CAMERAS} are paired"
        )
    return ""


class CameraPairCounter:
    """Takes blocks of scores one by one, and gives the scores between cameras in the end."""

    def __init__(
        self, labels: Labels, protocol: str | Protocol = "market1501", tie: Tie = "worst", kernel: Kernel = "auto"
    ) -> None:
        """Sort the gallery by camera; the arguments are those of `evaluate_camera_pairs`.

        Raises:
            EvaluationError: see `evaluate_camera_pairs`.
        """
        protocol = find_protocol(protocol)
        if why := why_no_camera_pairs(labels, protocol):
            raise EvaluationError(why)
        self._labels, self._protocol, self._tie, self._kernel = labels, protocol, tie, kernel
        self._gallery_camids = np.unique(labels.gallery_camids)
        self._columns = [np.flatnonzero(labels.gallery_camids == camid) for camid in self._gallery_camids]
        self._indices = [PairIndex(_of_gallery(labels, chosen), protocol) for chosen in self._columns]
        self._parts: list[list[Part]] = [[] for _ in self._columns]

    def add(self, first: int, block: Tensor) -> None:
        """Count a block of scores, which stays as it is; `first` is its first query."""
        scores = to_numpy(block)
        for chosen, index, found in zip(self._columns, self._indices, self._parts, strict=True):
            counts = count_negatives(scores[:, chosen], first, index, self._tie, self._kernel)  # of a copy
            found.append(tally(counts, self._protocol.ap))

    def pairs(self) -> CameraPairs:
        """Return the scores, once all queries were counted."""
        query_camids = np.unique(self._labels.query_camids)
        shape = len(query_camids), len(self._gallery_camids)
        num_valid, precision, rank1 = np.zeros(shape, np.int64), np.full(shape, np.nan), np.full(shape, np.nan)
        for b, found in enumerate(self._parts):
            ranks = np.concatenate([part.first_rank for part in found])
            values = np.concatenate([part.average_precision for part in found])
            for a, camid in enumerate(query_camids):
                chosen = (self._labels.query_camids == camid) & ~np.isnan(ranks)
                if chosen.any():
                    num_valid[a, b] = chosen.sum()
                    precision[a, b], rank1[a, b] = values[chosen].mean(), (ranks[chosen] == 1).mean()
        return CameraPairs(query_camids, self._gallery_camids, num_valid, precision, rank1)


def evaluate_camera_pairs(
    blocks: Iterable[tuple[int, Tensor]],
    labels: Labels,
    protocol: str | Protocol = "market1501",
    *,
    tie: Tie = "worst",
    kernel: Kernel = "auto",
) -> CameraPairs:
    """Return the scores between cameras, as the Matlab code of Market-1501 does: other cameras' crops are ignored.

    Args:
        blocks: as for `evaluate_blocks`; `score_blocks` makes them from features.
        labels: whose the crops are.
        protocol: a name of `PROTOCOLS`, or a protocol.
        tie: see `Tie`.
        kernel: see `Kernel`.

    Raises:
        EvaluationError: the blocks are not what `evaluate_blocks` takes, no cameras were given, there are more than
            200 on a side, or the protocol draws galleries or pools queries.
    """
    counter = CameraPairCounter(labels, protocol, tie, kernel)
    for first, block in checked_blocks(blocks, labels):
        counter.add(first, block)
    return counter.pairs()


def _of_gallery(labels: Labels, columns: npt.NDArray[np.int64]) -> Labels:
    """Return the labels of some gallery crops alone; the queries stay."""
    itself = labels.query_in_gallery
    if itself is not None:
        places = np.full(len(labels.gallery_pids) + 1, -1)  # the last is where -1 points
        places[columns] = np.arange(len(columns))
        itself = places[itself]
    return replace(
        labels,
        gallery_pids=labels.gallery_pids[columns],
        gallery_camids=labels.gallery_camids[columns],
        gallery_columns={name: values[columns] for name, values in labels.gallery_columns.items()},
        query_in_gallery=itself,
    )
