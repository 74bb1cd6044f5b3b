"""Two models on the same queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import Interval, check_samples, percentiles, resample_means
from entire_id.evaluation.scores import Scores, mean_over

__all__ = ["Comparison", "compare"]


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
        return asdict(self)

    def table(self) -> str:
        """Return the comparison as lines of text, in percentage points."""
        lines = [f"score   difference   {self.level:.0%} interval"]
        lines += [
            f"{name:<7} {100 * one.value:>+10.2f}   {100 * one.low:+.2f} to {100 * one.high:+.2f}"
            for name, one in self.differences.items()
        ]
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Return how many queries got better and worse, in a line."""
        return f"{self.num_better:,} queries are better, {self.num_worse:,} worse, {self.num_equal:,} equal"


def compare(first: Scores, second: Scores, level: float = 0.95, num_samples: int = 1000, seed: int = 0) -> Comparison:
    """Return how the second model's scores differ from the first's, with intervals.

    The same people are drawn for both models (paired cluster bootstrap), so what is hard for both does not count as
    uncertainty of their difference.

    Args:
        first: scores of one model.
        second: scores of another on the same queries, gallery and protocol.
        level: of confidence, in (0, 1).
        num_samples: how many samples are drawn.
        seed: of the draws.

    Raises:
        EvaluationError: the scores are not of the same queries, gallery and protocol; or see `Scores.intervals`.
    """
    _check_alike(first, second)
    pairs = first.by_query(), second.by_query()
    values = {name: pairs[1][name] - pairs[0][name] for name in pairs[0]}
    samples = resample_means(values, first.counted, first.labels.query_pids, check_samples(level, num_samples), seed)
    gain = values["mAP"][~np.isnan(values["mAP"])]
    return Comparison(
        {
            name: Interval(mean_over(values[name], first.num_mean_query), *percentiles(means, level))
            for name, means in samples.items()
        },
        level,
        int((gain > 0).sum()),
        int((gain < 0).sum()),
        int((gain == 0).sum()),
    )


def _check_alike(first: Scores, second: Scores) -> None:
    if first.protocol != second.protocol:
        raise EvaluationError(
            f"scores by protocol {first.protocol.name!r} and {second.protocol.name!r} cannot be compared"
        )
    for name in ("query_pids", "gallery_pids", "query_camids", "gallery_camids"):
        if not np.array_equal(getattr(first.labels, name), getattr(second.labels, name)):
            raise EvaluationError(
                f"the two models have other {name}: score both on the same query and gallery crops, in the same order"
            )
