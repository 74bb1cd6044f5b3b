"""Two models on the same queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import Interval, none_if_nan, resample_intervals
from entire_id.evaluation.scores import Scores, mean_over

__all__ = ["Comparison", "compare", "compare_queries"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a second model differs from a first.

    Attributes:
        differences: second less first, by the name of the score, with confidence intervals.
        level: of confidence.
        num_better: queries whose AP is higher with the second model.
        num_worse: queries whose AP is lower.
        num_equal: the others that have a positive.
    """

    differences: Mapping[str, Interval]
    level: float
    num_better: int
    num_worse: int
    num_equal: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, ready for JSON."""
        differences = {
            name: {end: none_if_nan(value) for end, value in asdict(one).items()}
            for name, one in self.differences.items()
        }
        return asdict(self) | {"differences": differences}

    def table(self) -> str:
        """Return the comparison as lines of text, in percentage points."""
        lines = [f"score   difference   {self.level:.0%} interval"]
        lines += [f"{name:<7} {100 * one.value:>+10.2f}   {one.ends('+')}" for name, one in self.differences.items()]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Return how many queries got better and worse, in a line."""
        return f"{self.num_better:,} queries are better, {self.num_worse:,} worse, {self.num_equal:,} equal"


def compare(first: Scores, second: Scores, level: float = 0.95, num_samples: int = 1000, seed: int = 0) -> Comparison:
    """Return how the second model's scores differ from the first's, with intervals.

    The same people are drawn for both models (paired cluster bootstrap), so what is hard for both does not count as
    uncertainty of their difference. Of ranks, those that both were scored to are compared.

    Args:
        first: scores of one model.
        second: scores of another on the same queries and gallery, by the same protocol and rule for ties.
        level: of confidence, in (0, 1).
        num_samples: how many samples are drawn.
        seed: of the draws.

    Raises:
        EvaluationError: the scores are not of the same queries, gallery, protocol and rule for ties; or see
            `Scores.intervals`.
    """
    _check_alike(first, second)
    return compare_queries(
        first.by_query(), second.by_query(), first.counted, first.labels.query_pids, level, num_samples, seed
    )


def compare_queries(  # noqa: PLR0913 whose the values are, and how they are drawn
    first: Mapping[str, Floats],
    second: Mapping[str, Floats],
    counted: Floats,
    pids: npt.NDArray[Any],
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Return what `compare` does, of values that are known for each query.

    Args:
        first: (q,) values by name, `mAP` among them, as `Scores.by_query` gives them.
        second: likewise, of the same queries.
        counted: (q,) 1 for the queries that the means run over, else 0.
        pids: (q,) whose they are.
        level: of confidence, in (0, 1).
        num_samples: how many samples are drawn.
        seed: of the draws.

    Raises:
        EvaluationError: see `Scores.intervals`.
    """
    values = {name: second[name] - first[name] for name in first if name in second}
    ends = resample_intervals(values, counted, pids, level, num_samples, seed)
    gain = values["mAP"][~np.isnan(values["mAP"])]
    return Comparison(
        {name: Interval(mean_over(of, int(counted.sum())), *ends[name]) for name, of in values.items()},
        level,
        int((gain > 0).sum()),
        int((gain < 0).sum()),
        int((gain == 0).sum()),
    )


def _check_alike(first: Scores, second: Scores) -> None:
    if first.protocol != second.protocol:
        raise EvaluationError(
            f"scores by protocol {first.protocol.title!r} and {second.protocol.title!r} cannot be compared"
        )
    if first.tie != second.tie:
        raise EvaluationError(f"scores with tie {first.tie!r} and {second.tie!r} cannot be compared")
    others = _what_counts(second)
    for name, values in _what_counts(first).items():
        if not np.array_equal(values, others[name]):
            raise EvaluationError(
                f"the two models have other {name}: score both on the same query and gallery crops, in the same order"
            )


def _what_counts(scores: Scores) -> dict[str, Any]:
    """Return by name all that says which crops are right, wrong or ignored; None for what was not given."""
    labels = scores.labels
    names = "query_pids", "gallery_pids", "query_camids", "gallery_camids", "query_in_gallery"
    columns = {
        f"{side}_columns[{name!r}]": of[name]
        for side, of in (("query", labels.query_columns), ("gallery", labels.gallery_columns))
        for name in scores.protocol.columns
    }
    return {name: getattr(labels, name) for name in names} | columns | {"num_positives": scores.num_positives}
