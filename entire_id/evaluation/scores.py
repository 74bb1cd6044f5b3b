"""The result of an evaluation, with everything that can be said of it afterwards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError
from entire_id.evaluation.breakdown import (
    Breakdown,
    Group,
    Interval,
    group_rows,
    resample_intervals,
)
from entire_id.evaluation.counting import Tie
from entire_id.evaluation.labels import Labels
from entire_id.evaluation.protocols import Protocol

__all__ = ["Scores", "mean_over"]

Floats = npt.NDArray[np.float64]

_PRINTED_RANKS = (1, 5, 10)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How well features find people.

    Means run over the valid queries, or over all, as the protocol says. What is given for each query is NaN where it
    was skipped. Under `single_gallery_shot` everything is the expectation over the draws of the gallery.

    Attributes:
        mAP: mean average precision, in [0, 1].
        mINP: mean inverse negative penalty, in [0, 1] (Ye et al., "Deep Learning for Person Re-identification: A Survey
            and Outlook", TPAMI 2021).
        cmc: (max_rank,) share of queries whose first positive is at rank ≤ 1, 2, …; constant beyond the gallery.
        average_precision: (num_query,) AP of each query.
        inverse_penalty: (num_query,) INP of each query: its positives, divided by the rank of the last.
        first_rank: (num_query,) rank of the first positive, from 1.
        num_positives: (num_query,) int64 right gallery crops of each query.
        ranks: (sum of num_positives,) int32 the ranks of all positives, query by query, ascending; empty under
            `single_gallery_shot`, where a rank is none of one ranking.
        hits: (num_query, max_rank) share of draws in which the first positive is at rank ≤ 1, 2, … under
            `single_gallery_shot`, else None.
        num_query: queries given, or made by pooling.
        num_valid_query: queries with at least one positive.
        num_gallery: gallery crops given.
        skipped: how many queries were skipped, by reason.
        ambiguity: the mAP if every tie fell for the model, less the mAP if every tie fell against it.
        protocol: what was scored.
        tie: where a positive stood among negatives of its score.
        warnings: sentences about what a reader of the scores should know.
        labels: whose the crops are.
    """

    mAP: float  # noqa: N815 the field's own spelling
    mINP: float  # noqa: N815
    cmc: Floats
    average_precision: Floats
    inverse_penalty: Floats
    first_rank: Floats
    num_positives: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int32]
    hits: npt.NDArray[np.float64] | None
    num_query: int
    num_valid_query: int
    num_gallery: int
    skipped: Mapping[str, int]
    ambiguity: float
    protocol: Protocol
    tie: Tie
    warnings: tuple[str, ...]
    labels: Labels

    def rank(self, k: int) -> float:
        """Return the share of queries with a positive among the first `k`, in [0, 1].

        Raises:
            EvaluationError: `k` is not in 1..max_rank.
        """
        self._check_rank(k)
        return float(self.cmc[k - 1])

    def hit(self, k: int) -> Floats:
        """Return (num_query,) whether each query has a positive among the first `k`: 1 or 0; NaN where it was skipped.

        Raises:
            EvaluationError: `k` is not in 1..max_rank.
        """
        self._check_rank(k)
        if self.hits is not None:
            return self.hits[:, k - 1]
        return np.where(np.isnan(self.first_rank), np.nan, self.first_rank <= k)

    def mAP_at(self, k: int) -> float:  # noqa: N802 the field's own spelling
        """Return the mean of the AP within the first `k` ranks, divided by the positives that fit there: min(k, all).

        The precisions are step precisions, whatever AP the protocol takes.

        Raises:
            EvaluationError: `k` is not at least 1, or the scores are of a single-shot protocol.
        """
        if k < 1:
            raise EvaluationError(f"mAP at {k} is not at least at 1")
        queries, places = self._positives("mAP at k")
        precision = np.where(self.ranks <= k, places / self.ranks, 0.0)
        total = np.bincount(queries, precision, minlength=self.num_query)
        return self._mean(total / np.where(self.num_positives, np.minimum(self.num_positives, k), np.nan))

    def r_precision(self) -> float:
        """Return the mean share of positives among the first r ranks of a query with r positives, in [0, 1].

        Raises:
            EvaluationError: the scores are of a single-shot protocol.
        """
        queries, _ = self._positives("R-precision")
        found = np.bincount(queries[self.ranks <= self.num_positives[queries]], minlength=self.num_query)
        return self._mean(found / np.where(self.num_positives, self.num_positives, np.nan))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain values, ready for JSON."""
        ranks = {f"rank{k}": self.rank(k) for k in _PRINTED_RANKS if k <= len(self.cmc)}
        counts = {name: getattr(self, name) for name in ("num_query", "num_valid_query", "num_gallery")}
        return {
            "mAP": self.mAP,
            **ranks,
            "mINP": self.mINP,
            "r_precision": None if self.protocol.single_shot else self.r_precision(),
            **counts,
            "skipped": dict(self.skipped),
            "ambiguity": self.ambiguity,
            "protocol": {**asdict(self.protocol), "junk_pids": list(self.protocol.junk_pids)},
            "tie": self.tie,
            "warnings": list(self.warnings),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text, with the whole curve as `cmc`."""
        return json.dumps({**self.to_dict(), "cmc": self.cmc.tolist()}, indent=1)

    def percentages(self) -> dict[str, float]:
        """Return the scores that papers print, by the name they print, in percent."""
        ranks = {f"Rank-{k}": self.rank(k) for k in _PRINTED_RANKS if k <= len(self.cmc)}
        return {name: 100 * value for name, value in {"mAP": self.mAP, **ranks, "mINP": self.mINP}.items()}

    def by(self, column: str, num_bins: int = 4) -> Breakdown:
        """Return the scores of the queries by a column, with 95 % intervals of the mAP as `intervals` gives them.

        Args:
            column: `camera`, `num_positives`, or a name of `query_columns`; numbers of many values are put into bins.
            num_bins: how many bins, at least 1.

        Raises:
            EvaluationError: there is no such column, its values cannot be put into groups, or there are no bins.
        """
        own: dict[str, npt.NDArray[Any]] = {"num_positives": self.num_positives}
        if self.labels.has_cameras:
            own = {"camera": self.labels.query_camids, **own}
        columns = {**own, **{name: of for name, of in self.labels.query_columns.items() if name not in own}}
        if column not in columns:
            raise EvaluationError(f"the queries have no column {column!r}; there is {', '.join(columns)}")
        rows = group_rows(columns[column], num_bins, are_names=column == "camera")
        return Breakdown(column, tuple(self._group(name, chosen) for name, chosen in rows))

    def _group(self, name: str, chosen: npt.NDArray[np.bool_]) -> Group:
        weights = self.counted[chosen]
        number = int(weights.sum())
        precision, rank1, penalty = (
            mean_over(values[chosen], number) if number else np.nan
            for values in (self.average_precision, self.hit(1), self.inverse_penalty)
        )
        values = {"mAP": self.average_precision[chosen]}
        low, high = resample_intervals(values, weights, self.labels.query_pids[chosen])["mAP"]
        num_valid = int((~np.isnan(self.first_rank[chosen])).sum())
        return Group(name, int(chosen.sum()), num_valid, precision, low, high, rank1, penalty)

    def intervals(self, level: float = 0.95, num_samples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Return mAP, rank1, rank5, rank10 and mINP with their confidence intervals.

        People are drawn with replacement, each with all its queries (cluster bootstrap, percentiles). Of one person
        alone nothing can be said: the ends are NaN.

        Args:
            level: of confidence, in (0, 1).
            num_samples: how many samples are drawn.
            seed: of the draws.

        Raises:
            EvaluationError: `level` is not in (0, 1), or `num_samples` not at least 1.
        """
        values = self.by_query()
        ends = resample_intervals(values, self.counted, self.labels.query_pids, level, num_samples, seed)
        return {name: Interval(mean_over(of, self.num_mean_query), *ends[name]) for name, of in values.items()}

    def by_query(self) -> dict[str, Floats]:
        """Return (num_query,) AP, hits at rank 1, 5 and 10, and INP, by the names of their means."""
        hits = {f"rank{k}": self.hit(k) for k in _PRINTED_RANKS if k <= len(self.cmc)}
        return {"mAP": self.average_precision, **hits, "mINP": self.inverse_penalty}

    @property
    def counted(self) -> Floats:
        """(num_query,) 1 for the queries that the means run over, else 0."""
        if self.protocol.mean == "valid":
            return (~np.isnan(self.first_rank)).astype(np.float64)
        return (~np.isin(self.labels.query_pids, self.protocol.nobody_pids)).astype(np.float64)

    def table(self) -> str:
        """Return the scores as lines of text, with what was counted below them."""
        rows = [f"{name:<8}{value:6.2f} %" for name, value in self.percentages().items()]
        return "\n".join([*rows, self.summary(), *self.warnings])

    def summary(self) -> str:
        """Return what was counted, in a line."""
        skipped = self.num_query - self.num_valid_query
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.skipped.items())
        return (
            f"{self.num_valid_query:,} queries against {self.num_gallery:,} gallery crops, {skipped:,} queries skipped"
            + (f" ({reasons})" if reasons else "")
            + f"; protocol {self.protocol.title}"
        )

    def markdown_row(self, name: str, *, header: bool = False) -> str:
        """Return a row of a Markdown table, in percent; with `header`, the two lines above it, too."""
        scores = self.percentages()
        lines = [
            "| model | " + " | ".join(scores) + " | protocol |",
            "|---|" + "---:|" * len(scores) + "---|",
            f"| {name} | " + " | ".join(f"{value:.1f}" for value in scores.values()) + f" | {self.protocol.title} |",
        ]
        return "\n".join(lines if header else lines[2:])

    def _check_rank(self, k: int) -> None:
        if not 1 <= k <= len(self.cmc):
            raise EvaluationError(f"rank {k} is not in 1..{len(self.cmc)}; evaluate with max_rank={k}")

    def _positives(self, what: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return of each of `ranks` its query and its place among the query's positives, from 1."""
        if not len(self.ranks):
            raise EvaluationError(
                f"{what} needs the ranks of all positives, and protocol {self.protocol.name!r} draws one of them"
            )
        queries = np.repeat(np.arange(self.num_query), self.num_positives)
        starts = np.cumsum(self.num_positives) - self.num_positives
        return queries, np.arange(1, len(self.ranks) + 1) - starts[queries]

    def _mean(self, values: Floats) -> float:
        return mean_over(values, self.num_mean_query)

    @property
    def num_mean_query(self) -> int:
        """How many queries the means run over."""
        return int(self.counted.sum())


def mean_over(values: Floats, number: int) -> float:
    """Return the sum of the values that are not NaN, divided by `number`: the same whatever their order."""
    return math.fsum(values[~np.isnan(values)]) / number
