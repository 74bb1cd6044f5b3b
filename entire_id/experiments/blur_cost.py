"""What blurring costs: the same queries and gallery, blurred and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entire_id.errors import ExperimentError
from entire_id.evaluation.breakdown import Interval
from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.notes import own_notes, training_notes
from entire_id.experiments.results import DataSet, Result, compare_results
from entire_id.experiments.subsets import training_split
from entire_id.experiments.tables import Difference, Outcome, Row, Table
from entire_id.loading.dataset import CropDataset
from entire_id.loading.selection import Selection

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


def head_pairs(
    candidates: Sequence[Candidate], tests: Sequence[DataSet], protocol: str = "market1501"
) -> list[BlurPair]:
    """Return every candidate on every test set, plain and with the region of the heads blurred: see `blur_heads`."""
    return [
        BlurPair(f"{one.name} on {test.name}", (one, Task(test, protocol)), (one, Task(test, protocol, blur=True)))
        for one in candidates
        for test in tests
    ]


def given_pairs(
    candidates: Sequence[Candidate], sets: tuple[DataSet, DataSet], protocol: str = "market1501", *, own: bool
) -> list[BlurPair]:
    """Return every candidate on the plain set and on the blurred one.

    Args:
        candidates: who is asked; with `own` one that was trained on the plain set, and one on the blurred one.
        sets: the same crops, plain and blurred.
        protocol: by which they are scored.
        own: ask each of the two of its own set, as one pair.

    Raises:
        ExperimentError: the sets do not hold the same crops, in name.
        DatasetNotFoundError, SplitNotFoundError, ManifestError: see `CropDataset`.
    """
    plain, blurred = (Task(one, protocol) for one in sets)
    _check_pair(*sets, "query+gallery")
    if own:
        first, second = candidates
        if first.training is not None:
            _check_pair(*sets, training_split(first.training, sets[0].path))
        return [BlurPair("each trained on its own", (first, plain), (second, blurred))]
    return [BlurPair(one.name, (one, plain), (one, blurred)) for one in candidates]


def _check_pair(plain: DataSet, blurred: DataSet, split: str) -> None:
    labels = []
    for one in (plain, blurred):
        crops = CropDataset(one.path, split, select=Selection(keep_junk=True))
        labels.append(set(zip(crops.keys, crops.pids.tolist(), crops.camids.tolist(), strict=True)))
    if alone := sorted(labels[0] ^ labels[1]):
        what = f"{len({key for key, _, _ in alone}):,} crops of {split} are in one of the two alone, or under other"
        hint = f"people or cameras: {alone[0][0]!r} among them"
        raise ExperimentError(blurred.path, f"it is not {plain.path} blurred: {what} {hint}")


def compare_blur(bench: Bench, pairs: Sequence[BlurPair]) -> Outcome:
    """Return the scores on plain and blurred crops, and their difference on the same queries.

    Raises:
        ExperimentError: the two of a pair have other queries.
        See `score_candidates` for the others.
    """
    asked = [(candidate, [task]) for pair in pairs for candidate, task in (pair.plain, pair.blurred)]
    results = [result for (result,) in score_candidates(bench, asked)]
    rows: list[Row] = []
    series: dict[str, dict[str, Interval]] = {}
    for pair, plain, blurred in zip(pairs, results[::2], results[1::2], strict=True):
        gap = compare_results(plain, blurred, pair.name)
        rows.append((pair.name, plain.counts["num_valid_query"], *_cells(plain, blurred, gap.differences)))
        series[pair.name] = {"plain": plain.metrics["mAP"], "blurred": blurred.metrics["mAP"]}
    columns = ("model", "queries", *(f"{score} {what}" for score in ("mAP", "Rank-1") for what in _WHAT))
    candidates = dict.fromkeys(candidate for candidate, _ in asked)
    notes = (
        "Difference: blurred less plain, in percentage points, on the same queries, with its paired 95 % interval: the "
        "same people are drawn for both.",
        *own_notes(candidates, [task.test for pair in pairs for _, task in (pair.plain, pair.blurred)]),
        *training_notes(candidates),
    )
    plots = {"scores": plot_intervals(series, ("crops", "mAP (%)"), joined=True)}
    return Outcome("What blurring costs", (Table("Plain and blurred", columns, tuple(rows), notes),), plots)


_WHAT = ("plain", "blurred", "difference")


def _cells(plain: Result, blurred: Result, differences: Mapping[str, Interval]) -> list[Interval]:
    """Return mAP and Rank-1 of both, each with its difference."""
    return [
        cell
        for name in ("mAP", "rank1")
        for cell in (plain.metrics[name], blurred.metrics[name], Difference.of(differences[name]))
    ]
