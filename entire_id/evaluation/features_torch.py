"""The blocks of `features` from torch tensors that lie on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from entire_id.evaluation.features import TILE_ROWS, block_rows, inverse_lengths, tile_bounds

__all__ = ["score_blocks"]

_SCORE_BYTES = 256 << 20  # of a block


def score_blocks(query: torch.Tensor, gallery: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what `features.score_blocks` yields, as tensors."""
    query_scale, gallery_scale = _inverse_lengths(query, "query"), _inverse_lengths(gallery, "gallery")
    num_rows, num_gallery = block_rows(len(query), len(gallery), _SCORE_BYTES), len(gallery)
    tiles = tile_bounds(num_gallery, TILE_ROWS)
    if tiles[-1][1] > num_gallery:
        missing = tiles[-1][1] - num_gallery
        gallery = torch.nn.functional.pad(gallery, (0, 0, 0, missing))
        gallery_scale = torch.nn.functional.pad(gallery_scale, (0, missing))
    scores = torch.empty(num_rows, len(gallery), dtype=torch.float32, device=query.device)
    queries = torch.zeros(num_rows, query.shape[1], dtype=torch.float32, device=query.device)
    for first in range(0, len(query), num_rows):
        stop = min(first + num_rows, len(query))
        queries.zero_()
        queries[: stop - first] = query[first:stop].float() * query_scale[first:stop, None]
        with _exact_products(query.device):  # not while the caller works on the block
            for start, end in tiles:
                scores[:, start:end] = (queries @ gallery[start:end].float().T) * gallery_scale[start:end]
        yield first, scores[: stop - first, :num_gallery]


def _inverse_lengths(features: torch.Tensor, side: str) -> torch.Tensor:
    squares = torch.empty(len(features), dtype=torch.float32, device=features.device)
    with _exact_products(features.device):
        for start, stop in tile_bounds(len(features), TILE_ROWS):
            tile = features[start:stop].float()
            squares[start:stop] = torch.linalg.vecdot(tile, tile)
    return torch.from_numpy(inverse_lengths(squares.cpu().numpy(), side)).to(features.device)


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Multiply float32 numbers as such, whatever the caller has set to train faster: autocast, or TF32."""
    settings = torch.backends.cuda.matmul
    # torch 2.9 has a new name; it refuses to tell the old one where the new one was set.
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    has_autocast = torch.amp.is_autocast_available(device.type)
    setattr(settings, name, exact)
    try:
        with torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        setattr(settings, name, before)
