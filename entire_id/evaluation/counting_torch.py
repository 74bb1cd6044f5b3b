"""The count of `counting` on torch tensors, on whichever device they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from entire_id.evaluation.arrays import FloatArray, Int64Array
from entire_id.evaluation.labels import PairIndex

__all__ = ["count", "hide", "take"]

_RUN_SCORES = 1 << 24  # entries compared at once: 64 MiB of places


def take(block: torch.Tensor, rows: Int64Array, columns: Int64Array) -> FloatArray:
    """Return the scores of some pairs."""
    taken = block[_on(block, rows), _on(block, columns)]
    scores: FloatArray = taken.cpu().numpy()
    return scores


def hide(block: torch.Tensor, rows: Int64Array, columns: Int64Array, index: PairIndex, first: int) -> None:
    """Overwrite what is no negative."""
    block[_on(block, rows), _on(block, columns)] = -torch.inf
    block[:, _on(block, index.junk)] = -torch.inf
    if index.groups is not None:
        query_groups, gallery_groups = index.groups
        others = _on(block, query_groups[first : first + len(block)])[:, None] != _on(block, gallery_groups)
        block[others] = -torch.inf


def count(block: torch.Tensor, scores: FloatArray, num_positives: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return for each positive how many entries of its row score at least as high, and how many higher."""
    most = int(num_positives.max(initial=0))
    if not most:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    is_positive = np.arange(most) < num_positives[:, None]
    padded = np.full((len(block), most), np.inf, scores.dtype)
    padded[is_positive] = scores
    ascending = _on(block, np.sort(padded, axis=1))
    counts = []
    for right in (True, False):  # equal entries reach a positive, or do not
        runs = torch.split(block, max(1, _RUN_SCORES // block.shape[1]))
        reached = [
            _suffix_sums(*pair, right=right) for pair in zip(runs, torch.split(ascending, len(runs[0])), strict=True)
        ]
        # column j: how many entries reach the j-th lowest positive of the row
        sums = torch.cat(reached).cpu().numpy()
        places = np.maximum(num_positives[:, None] - 1 - np.arange(most), 0)
        counts.append(np.take_along_axis(sums, places, axis=1)[is_positive])
    return counts[0], counts[1]


def _suffix_sums(block: torch.Tensor, ascending: torch.Tensor, *, right: bool) -> torch.Tensor:
    """Return (b, p) how many entries of a row reach its first, second … positive."""
    num_beaten = torch.searchsorted(ascending, block.contiguous(), right=right, out_int32=True)
    rows, columns = num_beaten.nonzero(as_tuple=True)
    num_places = ascending.shape[1] + 1
    places = rows * num_places + num_beaten[rows, columns]
    counts = torch.bincount(places, minlength=len(block) * num_places).view(len(block), num_places)
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


def _on(block: torch.Tensor, values: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(block.device)
