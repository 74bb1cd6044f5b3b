"""The blocks of `features` from torch tensors, on whichever device they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from entire_id.evaluation.features import block_rows, check_squares, tile_bounds

__all__ = ["score_blocks"]

_SCORE_BYTES = 256 << 20  # of a block


def score_blocks(query: torch.Tensor, gallery: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what `features.score_blocks` yields, as tensors."""
    query_scale, gallery_scale = _inverse_lengths(query, "query"), _inverse_lengths(gallery, "gallery")
    num_rows, num_gallery = block_rows(len(query), len(gallery), _SCORE_BYTES), len(gallery)
    tiles = tile_bounds(num_gallery)
    if tiles[-1][1] > num_gallery:
        missing = tiles[-1][1] - num_gallery
        gallery = torch.nn.functional.pad(gallery, (0, 0, 0, missing))
        gallery_scale = torch.nn.functional.pad(gallery_scale, (0, missing))
    scores = torch.empty(num_rows, len(gallery), device=query.device)
    queries = torch.zeros(num_rows, query.shape[1], device=query.device)
    for first in range(0, len(query), num_rows):
        stop = min(first + num_rows, len(query))
        queries.zero_()
        queries[: stop - first] = query[first:stop].float() * query_scale[first:stop, None]
        for start, end in tiles:
            scores[:, start:end] = (queries @ gallery[start:end].float().T) * gallery_scale[start:end]
        yield first, scores[: stop - first, :num_gallery]


def _inverse_lengths(features: torch.Tensor, side: str) -> torch.Tensor:
    squares = torch.empty(len(features), device=features.device)
    for start, stop in tile_bounds(len(features)):
        tile = features[start:stop].float()
        squares[start:stop] = torch.linalg.vecdot(tile, tile)
    check_squares(squares.cpu().numpy(), side)
    return squares.double().rsqrt().float()
