"""Blocks of scores from anywhere: are they what evaluation takes?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from entire_id.errors import EvaluationError
from entire_id.evaluation.arrays import Tensor, is_tensor
from entire_id.evaluation.labels import Labels

__all__ = ["checked_blocks"]


def checked_blocks(blocks: Iterable[tuple[int, Tensor]], labels: Labels) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks, and raise an EvaluationError where they are not what `evaluate_blocks` takes."""
    num_query, num_gallery = len(labels.query_pids), len(labels.gallery_pids)
    expected = 0
    for first, given in blocks:
        block = _overwritable(given)
        _check_block(first, block, expected, num_gallery)
        expected += len(block)
        if expected > num_query:
            break
        yield first, block
    if expected != num_query:
        raise EvaluationError(f"the blocks hold {expected:,} rows of scores for {num_query:,} queries")


def _check_block(first: int, block: Tensor, expected: int, num_gallery: int) -> None:
    if first != expected:
        raise EvaluationError(f"a block starts with query {first:,}; expected query {expected:,}: blocks go in order")
    if block.ndim != 2 or not len(block) or block.shape[1] != num_gallery:
        raise EvaluationError(f"the block of query {first:,} has shape {tuple(block.shape)}; not (b, {num_gallery})")
    if str(block.dtype).removeprefix("torch.") not in {"float32", "float64"}:
        raise EvaluationError(f"the block of query {first:,} is {block.dtype}; expected float32 or float64")
    if not is_tensor(block) and not block.flags.writeable:
        raise EvaluationError(f"the block of query {first:,} is read-only; it is overwritten, so give a copy")
    if not np.isfinite(float(block.max())) or not np.isfinite(float(block.min())):
        raise EvaluationError(f"scores in the block of query {first:,} are NaN or infinite")


def _overwritable(block: Tensor) -> Tensor:
    """Return a tensor without what torch needs for gradients, which forbids to overwrite it; an array as it is."""
    if not is_tensor(block):
        return block
    return block.clone() if block.is_inference() else block.detach()
