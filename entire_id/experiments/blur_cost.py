"""What blurring costs: the same queries and gallery, blurred and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entire_id.evaluation.breakdown import Interval
from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidate
from entire_id.experiments.cross_domain import check_names
from entire_id.experiments.results import DataSet, Result, compare_results
from entire_id.experiments.tables import Difference, Outcome, Row, Table

__all__ = ["BlurPair", "compare_blur", "given_pairs", "head_pairs"]


@dataclass(frozen=True, slots=True)
class BlurPair:
    """The same crops, plain and blurred.

    Attributes:
        name: what tables call them.
        plain: who is asked what of the plain ones.
        blurred: the same of the blurred ones.
    """

    name: str
    plain: tuple[Candidate, Task]
    blurred: tuple[Candidate, Task]


def head_pairs(candidates: Sequence[Candidate], tests: Sequence[DataSet]) -> list[BlurPair]:
    """Return every candidate on every test set, plain and with the region of the heads blurred: see `blur_heads`."""
    return [
        BlurPair(f"{one.name} on {test.name}", (one, Task(test)), (one, Task(test, blur=True)))
        for one in candidates
        for test in tests
    ]


def given_pairs(candidates: Sequence[Candidate], sets: tuple[DataSet, DataSet], *, own: bool) -> list[BlurPair]:
    """Return every candidate on the plain set and on the blurred one.

    Args:
        candidates: who is asked; with `own` one that was trained on the plain set, and one on the blurred one.
        sets: the same crops, plain and blurred.
        own: ask each of the two of its own set, as one pair.
    """
    plain, blurred = map(Task, sets)
    if own:
        first, second = candidates
        return [BlurPair("each trained on its own", (first, plain), (second, blurred))]
    return [BlurPair(one.name, (one, plain), (one, blurred)) for one in candidates]


def compare_blur(bench: Bench, pairs: Sequence[BlurPair]) -> Outcome:
    """Return the scores on plain and blurred crops, and their difference on the same queries.

    Raises:
        ExperimentError: the two of a pair have other queries.
        See `score_candidate` for the others.
    """
    check_names(bench.out, {candidate.name: candidate for pair in pairs for candidate, _ in _sides(pair)}.values())
    rows: list[Row] = []
    series: dict[str, dict[str, Interval]] = {}
    for pair in pairs:
        plain, blurred = (score_candidate(bench, candidate, [task])[0] for candidate, task in _sides(pair))
        gap = compare_results(plain, blurred, pair.name)
        rows.append((pair.name, plain.counts["num_valid_query"], *_cells(plain, blurred, gap.differences)))
        series[pair.name] = {"plain": plain.metrics["mAP"], "blurred": blurred.metrics["mAP"]}
    columns = ("model", "queries", *(f"{score} {what}" for score in ("mAP", "Rank-1") for what in _WHAT))
    notes = (
        "Difference: blurred less plain, in percentage points, on the same queries, with its paired 95 % interval: the "
        "same people are drawn for both.",
    )
    plots = {"scores": plot_intervals(series, ("crops", "mAP (%)"), joined=True)}
    return Outcome("What blurring costs", (Table("Plain and blurred", columns, tuple(rows), notes),), plots)


_WHAT = ("plain", "blurred", "difference")


def _sides(pair: BlurPair) -> tuple[tuple[Candidate, Task], tuple[Candidate, Task]]:
    return pair.plain, pair.blurred


def _cells(plain: Result, blurred: Result, differences: Mapping[str, Interval]) -> list[Interval]:
    """Return mAP and Rank-1 of both, each with its difference."""
    return [
        cell
        for name in ("mAP", "rank1")
        for cell in (plain.metrics[name], blurred.metrics[name], Difference.of(differences[name]))
    ]
