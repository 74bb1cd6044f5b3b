"""Parts of a result, and how sure it is: groups of queries, and intervals by resampling identities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError

__all__ = [
    "Breakdown",
    "Group",
    "Interval",
    "group_rows",
    "middle_of",
    "none_if_nan",
    "resample_intervals",
    "resample_means",
]

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
        mAP_low: lower end of its confidence interval; NaN where fewer than two people count.
        mAP_high: upper end, likewise.
        rank1: share whose first positive is at rank 1; NaN where no query counts.
        mINP: mean inverse negative penalty, likewise.
    """

    name: str
    num_query: int
    num_valid_query: int
    mAP: float  # noqa: N815 the field's own spelling
    mAP_low: float  # noqa: N815
    mAP_high: float  # noqa: N815
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
            group.name: {name: none_if_nan(value) for name, value in asdict(group).items()} for group in self.groups
        }

    def table(self) -> str:
        """Return the groups as lines of text, scores in percent, the mAP with its interval."""
        width = max(len(self.column), *(len(group.name) for group in self.groups))
        lines = [f"{self.column:<{width}}  queries    mAP   from     to  Rank-1   mINP"]
        for group in self.groups:
            scores = group.mAP, group.mAP_low, group.mAP_high, group.rank1, group.mINP
            cells = ["–" if math.isnan(value) else f"{100 * value:.1f}" for value in scores]
            places = "{:>5}  {:>5}  {:>5}  {:>6}  {:>5}".format(*cells)
            lines.append(f"{group.name:<{width}}  {group.num_valid_query:>7,}  {places}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, and between what it lies.

    Attributes:
        value: of all queries.
        low: lower end of the interval; NaN where fewer than two people count, for then nothing is known of it.
        high: upper end, likewise.
    """

    value: float
    low: float
    high: float

    def ends(self, sign: str = "") -> str:
        """Return the ends in percent, as in `12.34 to 56.78`; with sign "+", signs before both."""
        if math.isnan(self.low):
            return "–"
        return f"{100 * self.low:{sign}.2f} to {100 * self.high:{sign}.2f}"


def none_if_nan(value: Any) -> Any:  # noqa: ANN401 any plain value
    """Return the value, or None for NaN, which JSON does not know.

    >>> none_if_nan(float("nan")), none_if_nan(0.5), none_if_nan("asia")
    (None, 0.5, 'asia')
    """
    return None if isinstance(value, float) and math.isnan(value) else value


def group_rows(
    values: npt.NDArray[Any], num_bins: int, *, are_names: bool = False
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Return each value's name and which rows are of it; of many numbers, those of bins of about equal size.

    Args:
        values: (n,) of any type.
        num_bins: how many bins numbers are put into that take more than 50 values, or that are no integers.
        are_names: whether the numbers are names, as those of cameras are, and so never put into bins.

    Raises:
        EvaluationError: the values cannot be ordered, are too many to list, or are not finite; or there are no bins.
    """
    if num_bins < 1:
        raise EvaluationError(f"{num_bins} bins are none")
    try:
        found, numbers = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise EvaluationError(f"values of type {values.dtype} cannot be put into groups: {error}") from error
    if are_names or (len(found) <= _MAX_GROUPS and not np.issubdtype(values.dtype, np.floating)):
        return [(str(value), numbers == number) for number, value in enumerate(found.tolist())]
    if not np.issubdtype(values.dtype, np.number):
        raise EvaluationError(f"{len(found):,} different values make too many groups; expected at most {_MAX_GROUPS}")
    if not np.isfinite(found).all():
        raise EvaluationError("a column with NaN or infinite values cannot be put into bins")
    # Edges are values that occur, so that equal values share a bin.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1), method="inverted_cdf"))
    bins = np.searchsorted(edges[1:], values, "left")
    chosen = [bins == number for number in np.unique(bins).tolist()]
    names = _names_of_bins([(values[rows].min().item(), values[rows].max().item()) for rows in chosen])
    return list(zip(names, chosen, strict=True))


def _names_of_bins(bounds: list[tuple[float, float]]) -> list[str]:
    """Return a name for each bin: integers in full, others in six digits, or in all that tell the bins apart."""
    if all(isinstance(end, int) for ends in bounds for end in ends):
        return [f"{low}–{high}" for low, high in bounds]
    short = [f"{low:.6g}–{high:.6g}" for low, high in bounds]
    return short if len(set(short)) == len(short) else [f"{low!r}–{high!r}" for low, high in bounds]


def resample_intervals(
    values: Mapping[str, Floats],
    weights: Floats,
    clusters: npt.NDArray[Any],
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return between what the middle of the means of samples lies, a share `level` of them.

    A sample draws whole clusters with replacement, as many as there are: queries of one person are alike, so they are
    drawn together (Field and Welsh, "Bootstrapping clustered data", JRSS B 2007).

    Args:
        values: (n,) by name; NaN where the weight is 0.
        weights: (n,) 1 for what counts in a mean, else 0.
        clusters: (n,) the identity of each.
        level: of confidence, in (0, 1).
        num_samples: how many samples, at least 1.
        seed: of the draws.

    Returns:
        Lower and upper end by name; NaN where fewer than two clusters count.

    Raises:
        EvaluationError: `level` is not in (0, 1), or `num_samples` not at least 1.
    """
    if not 0 < level < 1 or num_samples < 1:
        raise EvaluationError(f"level {level} is not in (0, 1), or {num_samples} samples are none")
    means = resample_means(list(values.values()), weights, clusters, num_samples, seed)
    return {name: middle_of(of, level) for name, of in zip(values, means.T, strict=True)}


def middle_of(samples: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return between what the middle of (n,) samples lies, a share `level` in (0, 1); NaN where one of them is."""
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2)).tolist()
    return low, high


def resample_means(
    values: Sequence[Floats], weights: Floats, clusters: npt.NDArray[Any], num_samples: int = 1000, seed: int = 0
) -> Floats:
    """Return the means of the samples that `resample_intervals` draws, (num_samples, k) of k values.

    They are NaN where fewer than two clusters count.
    """
    counted = weights > 0
    numbers = np.unique(clusters[counted], return_inverse=True)[1]
    num_clusters = int(numbers.max(initial=-1)) + 1
    if num_clusters < 2:
        return np.full((num_samples, len(values)), math.nan)
    sums = [np.bincount(numbers, np.nan_to_num(of[counted]), num_clusters) for of in values]
    totals = np.stack([*sums, np.bincount(numbers, minlength=num_clusters)], axis=1)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, num_samples, _SAMPLES_AT_ONCE):
        size = min(_SAMPLES_AT_ONCE, num_samples - start), num_clusters
        drawn.append(totals[rng.integers(0, num_clusters, size)].sum(axis=1))
    samples = np.concatenate(drawn)
    means: Floats = samples[:, :-1] / samples[:, -1:]
    return means
