"""The count of `counting`, compiled: `pip install 'entire-id[fast]'`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from entire_id.evaluation.arrays import Int64Array

__all__ = ["count_rows"]

_RUN = 256  # entries that are compared with one positive after another while they are close at hand


def _count_rows(  # noqa: PLR0913 what every kernel takes
    block: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    bounds: Int64Array,
    at_least: Int64Array,
    above: Int64Array,
    start: int,
    stop: int,
) -> None:
    """Count the entries of each row of `block` that reach its positives, as the function of this name in `counting`."""
    for row in range(start, stop):
        low, high = bounds[row], bounds[row + 1]
        for begin in range(0, block.shape[1] if low < high else 0, _RUN):
            entries = block[row, begin : begin + _RUN]
            for place in range(high - 1, low - 1, -1):  # from the lowest positive up
                score = scores[place]
                reaching, higher = np.int32(0), np.int32(0)
                for column in range(len(entries)):
                    reaching += np.int32(entries[column] >= score)
                    higher += np.int32(entries[column] > score)
                if reaching == 0:  # none reaches the positives above it either
                    break
                at_least[place] += reaching
                above[place] += higher


def _compiled(function: Any) -> Any:  # noqa: ANN401 numba has no types
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder can be written to: compile anew in each process
        return njit(nogil=True)(function)


count_rows = _compiled(_count_rows)
