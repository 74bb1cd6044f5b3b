"""Integers that are counted, ranked and sorted: quicker than by numpy's own functions where they lie close together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Integers", "Numbers", "codes_of", "count_values", "dense", "order_of", "runs"]

Integers = npt.NDArray[np.integer[Any]]
Numbers = npt.NDArray[np.int64]


def count_values(values: Integers) -> tuple[Integers, Numbers]:
    """Return the different ones of (n,) integers, ascending, and how often each is there.

    As np.unique does, but without sorting where they lie close together.

    >>> count_values(np.array([7, -1, 7]))
    (array([-1,  7]), array([1, 2]))
    """
    low, num_values = _range(values)
    if not _is_dense(values, num_values):
        return np.unique(values, return_counts=True)
    counts = np.bincount(np.subtract(values, low, dtype=np.int64))
    places = np.flatnonzero(counts)
    return (places + low).astype(values.dtype), counts[places]


def order_of(*columns: Integers) -> Numbers:
    """Return the stable order of rows by the first column, then the second and so on: np.lexsort, but one quick sort.

    Rows become integers that are all different, so that any way of sorting them gives the same order on any machine.
    """
    codes, num_codes = codes_of(*columns)
    num_rows = max(len(codes), 1)
    if num_codes <= 1 << 16:
        return codes.astype(np.uint16).argsort(kind="stable")  # 16 bits: a radix sort
    if num_codes * num_rows > 1 << 62:
        codes, _ = dense(codes)
    codes *= num_rows
    codes += np.arange(len(codes))
    codes.sort()
    return codes % num_rows


def codes_of(*columns: Integers) -> tuple[Numbers, int]:
    """Return numbers from 0 that compare as rows do by the first column, then the second; and how many there can be."""
    codes, num_codes = _from_zero(columns[0])
    for column in columns[1:]:
        numbers, num_numbers = _from_zero(column)
        if num_codes * num_numbers > 1 << 62:
            (codes, num_codes), (numbers, num_numbers) = dense(codes), dense(numbers)
        codes *= num_numbers
        codes += numbers
        num_codes *= num_numbers
    return codes, num_codes


def runs(values: Integers) -> tuple[Numbers, Numbers]:
    """Return where runs of equal values start, and how long they are."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return starts, np.diff(starts, append=len(values))


def dense(values: Integers) -> tuple[Numbers, int]:
    """Return the rank of each value among the different ones, and how many of these there are."""
    low, num_values = _range(values)
    if not _is_dense(values, num_values):
        kinds, ranks = np.unique(values, return_inverse=True)
        return ranks.astype(np.int64), len(kinds)
    places = np.subtract(values, low, dtype=np.int64)
    ranks = np.cumsum(np.bincount(places, minlength=num_values) > 0)
    return ranks[places] - 1, int(ranks[-1]) if len(values) else 0


def _range(values: Integers) -> tuple[int, int]:
    """Return the lowest value, and how many there can be from it to the highest."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return low, high - low + 1


def _is_dense(values: Integers, num_values: int) -> bool:
    """Tell whether a table of so many values is quicker than sorting."""
    return num_values <= 4 * len(values) + 1


def _from_zero(values: Integers) -> tuple[Numbers, int]:
    """Return `values` less the lowest of them, or as ranks where they are too far apart; and how many there can be."""
    low, num_values = _range(values)
    if num_values > 1 << 62:
        return dense(values)
    return np.subtract(values, low, dtype=np.int64), num_values
