"""Parts of a result, and how sure it is: groups of queries, and intervals by resampling identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError

__all__ = ["Breakdown", "Group", "Interval", "check_samples", "group_rows", "percentiles", "resample_means"]

Floats = npt.NDArray[np.float64]

_MAX_GROUPS = 50  # of numbers; more are put into bins
_SAMPLES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Group:
    """The scores of some queries.

    Attributes:
        name: what they have in common.
        num_query: how many there are.
        num_valid_query: how many have a positive.
        mAP: mean average precision, in [0, 1]; NaN where no query counts.
        rank1: share whose first positive is at rank 1, likewise.
        mINP: mean inverse negative penalty, likewise.
    """

    name: str
    num_query: int
    num_valid_query: int
    mAP: float  # noqa: N815 the field's own spelling
    rank1: float
    mINP: float  # noqa: N815


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Scores by a column.

    Attributes:
        column: what the queries were grouped by.
        groups: in the order of their values.
    """

    column: str
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the groups as plain values by name, ready for JSON: what is NaN is None."""
        return {
            group.name: {name: None if value != value else value for name, value in asdict(group).items()}
            for group in self.groups
        }

    def table(self) -> str:
        """Return the groups as lines of text, scores in percent."""
        width = max(len(self.column), *(len(group.name) for group in self.groups))
        lines = [f"{self.column:<{width}}  queries    mAP  Rank-1   mINP"]
        lines += [
            f"{group.name:<{width}}  {group.num_valid_query:>7,}  {100 * group.mAP:>5.1f}  {100 * group.rank1:>6.1f}  "
            f"{100 * group.mINP:>5.1f}"
            for group in self.groups
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, and between what it lies.

    Attributes:
        value: of all queries.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def group_rows(values: npt.NDArray[Any], num_bins: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which rows are of each value, by its name; of many numbers, which are in each bin of about equal size.

    Args:
        values: (n,) of any type.
        num_bins: how many bins numbers are put into that take more than 50 values, or that are no integers.

    Raises:
        EvaluationError: the values cannot be ordered, are too many to list, or are not finite.
    """
    try:
        found, numbers = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise EvaluationError(f"values of type {values.dtype} cannot be put into groups: {error}") from error
    is_number = np.issubdtype(values.dtype, np.number)
    if len(found) <= _MAX_GROUPS and not np.issubdtype(values.dtype, np.floating):
        return {str(value): numbers == number for number, value in enumerate(found.tolist())}
    if not is_number:
        raise EvaluationError(f"{len(found):,} different values make too many groups; expected at most {_MAX_GROUPS}")
    if not np.isfinite(found).all():
        raise EvaluationError("a column with NaN or infinite values cannot be put into bins")
    # Edges are values that occur, so that equal values share a bin.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1), method="inverted_cdf"))
    bins = np.searchsorted(edges[1:], values, "left")
    return {
        f"{values[bins == number].min():.6g}–{values[bins == number].max():.6g}": bins == number
        for number in np.unique(bins).tolist()
    }


def check_samples(level: float, num_samples: int) -> int:
    """Return `num_samples`.

    Raises:
        EvaluationError: `level` is not in (0, 1), or `num_samples` not at least 1.
    """
    if not 0 < level < 1 or num_samples < 1:
        raise EvaluationError(f"level {level} is not in (0, 1), or {num_samples} samples are none")
    return num_samples


def percentiles(samples: Floats, level: float) -> tuple[float, float]:
    """Return between what the middle of the samples lies, a share `level` of them."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def resample_means(
    values: Mapping[str, Floats], weights: Floats, clusters: npt.NDArray[Any], num_samples: int, seed: int
) -> dict[str, Floats]:
    """Return the means of samples that draw whole clusters with replacement, as many as there are.

    Queries of one person are alike, so they are drawn together (Field and Welsh, "Bootstrapping clustered data", JRSS B
    2007).

    Args:
        values: (n,) by name; NaN where the weight is 0.
        weights: (n,) 1 for what counts in a mean, else 0.
        clusters: (n,) the identity of each.
        num_samples: how many samples.
        seed: of the draws.

    Returns:
        (num_samples,) by name.
    """
    counted = weights > 0
    numbers = np.unique(clusters[counted], return_inverse=True)[1]
    num_clusters = int(numbers.max()) + 1
    sums = [np.bincount(numbers, np.nan_to_num(of[counted]), num_clusters) for of in values.values()]
    totals = np.stack([*sums, np.bincount(numbers, minlength=num_clusters)], axis=1)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, num_samples, _SAMPLES_AT_ONCE):
        size = min(_SAMPLES_AT_ONCE, num_samples - start), num_clusters
        drawn.append(totals[rng.integers(0, num_clusters, size)].sum(axis=1))
    samples = np.concatenate(drawn)
    return {name: samples[:, number] / samples[:, -1] for number, name in enumerate(values)}
