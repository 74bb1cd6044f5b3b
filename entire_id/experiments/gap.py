"""How far two sets of features lie apart, as a number with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import Interval, middle_of

__all__ = ["kernel_width", "measure_gap"]

Floats = npt.NDArray[np.float64]

_NUM_SAMPLES = 200
_MAX_ROWS = 4000  # whose distances give the width


def kernel_width(features: Sequence[npt.NDArray[Any]]) -> float:
    """Return the width of the kernel of `measure_gap`: the median squared distance of all pairs of features.

    Gaps are compared by one width, that of all sets among which they lie. Of more than 4,000 features as many are
    taken, evenly.

    Args:
        features: one array or more, (n, d) each.
    """
    every = np.concatenate([_unit(of) for of in features])
    rows = every[:: -(-len(every) // _MAX_ROWS)]
    return max(float(np.median(_squares(rows, rows)[np.triu_indices(len(rows), 1)])), 1e-12)


def measure_gap(
    features: Sequence[npt.NDArray[Any]], people: Sequence[npt.NDArray[np.integer]], width: float | None = None
) -> Interval:
    """Return the squared maximum mean discrepancy of two sets of features, with its 95 % interval.

    It is without bias: about 0 for two samples of one domain, even below, and at most 2. A. Gretton et al., "A Kernel
    Two-Sample Test" (JMLR 2012), lemma 6, on features of unit length, with the Gaussian kernel whose width is a
    median distance, as they advise. Pairs of one person within a set are left out, for they are no independent draws.
    The sets share nobody. Interval: people are drawn with replacement, 200 times, in each set on its own; somebody who
    is drawn twice makes no pair with themselves, and draws of one person alone are left out.

    Args:
        features: two arrays, (n, d) and (m, d).
        people: whose they are, (n,) and (m,).
        width: of the kernel, see `kernel_width`; by default that of these two.

    Raises:
        EvaluationError: one of them is of fewer than two people.
    """
    groups = [np.unique(of, return_inverse=True)[1] for of in people]
    numbers = [int(group.max(initial=-1)) + 1 for group in groups]
    if min(numbers) < 2:
        raise EvaluationError(f"a domain gap needs at least 2 people in each set, not {min(numbers)}")
    sets = [_unit(of) for of in features]
    counts = [np.ones((1, number)) for number in numbers]
    rng = np.random.default_rng(0)
    for side, number in enumerate(numbers):
        drawn = rng.multinomial(number, np.full(number, 1 / number), _NUM_SAMPLES)
        counts[side] = np.concatenate([counts[side], drawn])  # everybody once, then the samples
    found = _discrepancies(sets, groups, counts, kernel_width(features) if width is None else width)
    samples = found[1:][np.isfinite(found[1:])]
    return Interval(float(found[0]), *middle_of(samples))


def _unit(features: npt.NDArray[Any]) -> Floats:
    values = features.astype(np.float64)
    unit: Floats = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit


def _squares(ones: Floats, others: Floats) -> Floats:
    """Return (n, m) squared distances of unit features."""
    squares: Floats = np.maximum(2 - 2 * (ones @ others.T), 0.0)
    return squares


def _discrepancies(
    sets: Sequence[Floats], groups: Sequence[npt.NDArray[np.intp]], counts: Sequence[Floats], width: float
) -> Floats:
    """Return (s,) MMD² of s draws of people; NaN where one person alone was drawn of a set.

    Args:
        sets: unit features.
        groups: of each feature the number of its person.
        counts: (s, people) how many times each person is drawn.
        width: of the kernel.
    """

    def means(one: int, other: int) -> Floats:
        kernel = np.exp(-_squares(sets[one], sets[other]) / width)
        pairs = (groups[one], groups[other]), (counts[one], counts[other])
        return _pair_means(kernel, *pairs, is_one_set=one == other)

    same, across = [means(0, 0), means(1, 1)], means(0, 1)
    discrepancies: Floats = same[0] + same[1] - 2 * across
    return discrepancies


def _pair_means(
    kernel: Floats,
    groups: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    counts: tuple[Floats, Floats],
    *,
    is_one_set: bool,
) -> Floats:
    """Return (s,) means of the kernel over pairs of different people, as often as these are drawn; NaN without one."""
    sizes = [np.bincount(group, minlength=count.shape[1]) for group, count in zip(groups, counts, strict=True)]
    members = [np.eye(len(size))[group] for group, size in zip(groups, sizes, strict=True)]
    sums, pairs = members[0].T @ kernel @ members[1], np.outer(*sizes).astype(np.float64)
    if is_one_set:
        np.fill_diagonal(sums, 0.0)
        np.fill_diagonal(pairs, 0.0)
    total, number = (np.einsum("sa,ab,sb->s", counts[0], of, counts[1], optimize=True) for of in (sums, pairs))
    means: Floats = np.where(number > 0, total / np.maximum(number, 1.0), np.nan)
    return means
