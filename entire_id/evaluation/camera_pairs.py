"""Scores from each camera to each other camera."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import Tensor, to_numpy
from entire_id.evaluation.counting import Kernel, Tie, count_negatives
from entire_id.evaluation.labels import Labels, PairIndex
from entire_id.evaluation.protocols import Protocol, find_protocol
from entire_id.evaluation.ranking import checked_blocks
from entire_id.evaluation.tally import Part, tally

__all__ = ["CameraPairs", "evaluate_camera_pairs"]

Floats = npt.NDArray[np.float64]


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
        EvaluationError: the blocks are not what `evaluate_blocks` takes, no cameras were given, or the protocol is a
            single-shot one.
    """
    protocol = find_protocol(protocol)
    if not labels.has_cameras or protocol.single_shot or protocol.pool_queries:
        raise EvaluationError(f"there are no scores by camera pair without cameras, or by protocol {protocol.name!r}")
    query_camids, gallery_camids = np.unique(labels.query_camids), np.unique(labels.gallery_camids)
    columns = [np.flatnonzero(labels.gallery_camids == camid) for camid in gallery_camids]
    indices = [PairIndex(_of_gallery(labels, chosen), protocol) for chosen in columns]
    parts: list[list[Part]] = [[] for _ in columns]
    for first, block in checked_blocks(blocks, labels):
        scores = to_numpy(block)
        for chosen, index, found in zip(columns, indices, parts, strict=True):
            counts = count_negatives(scores[:, chosen], first, index, tie, kernel)
            found.append(tally(counts, protocol.ap))
    shape = len(query_camids), len(gallery_camids)
    num_valid, precision, rank1 = np.zeros(shape, np.int64), np.full(shape, np.nan), np.full(shape, np.nan)
    for b, found in enumerate(parts):
        ranks = np.concatenate([part.first_rank for part in found])
        values = np.concatenate([part.average_precision for part in found])
        for a, camid in enumerate(query_camids):
            chosen = (labels.query_camids == camid) & ~np.isnan(ranks)
            if chosen.any():
                num_valid[a, b] = chosen.sum()
                precision[a, b], rank1[a, b] = values[chosen].mean(), (ranks[chosen] == 1).mean()
    return CameraPairs(query_camids, gallery_camids, num_valid, precision, rank1)


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
