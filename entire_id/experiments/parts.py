"""Scores by group of the queries, and by how much was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from entire_id.errors import ExperimentError
from entire_id.evaluation.breakdown import Interval
from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.notes import own_notes, training_notes
from entire_id.experiments.results import DataSet
from entire_id.experiments.subsets import nested_share, training_crops, training_split
from entire_id.experiments.tables import Outcome, Row, Share, Table
from entire_id.loading.dataset import CropDataset
from entire_id.loading.integers import count_values

__all__ = ["Part", "plan_parts", "score_groups", "score_parts"]

Of = Literal["people", "cameras", "continents"]


# --- groups of queries ------------------------------------------------------------------------------------------------


def score_groups(
    bench: Bench,
    candidates: Sequence[Candidate],
    tests: Sequence[DataSet],
    column: str,
    protocol: str = "market1501",
) -> Outcome:
    """Return the scores of the queries by a column, such as season or any other of `cameras.csv`.

    Raises:
        EvaluationError: the queries of a data set have no such column, or it cannot be put into groups.
        See `score_candidates` for the others.
    """
    tasks = [Task(test, protocol, (column,)) for test in tests]
    scored = score_candidates(bench, [(one, tasks) for one in candidates])
    rows: list[Row] = []
    series: dict[str, dict[str, Interval]] = {}
    for candidate, results in zip(candidates, scored, strict=True):
        for test, result in zip(tests, results, strict=True):
            groups = result.groups[column]
            rows += [(candidate.name, test.name, *_of_group(name, group)) for name, group in groups.items()]
            name = " on ".join([candidate.name] * (len(candidates) > 1) + [test.name])
            series[name] = {name: _precision(group) for name, group in groups.items()}
    columns = ("model", "test set", column, "queries", "mAP", "Rank-1", "mINP")
    notes = (
        "A query belongs to the group of its own crop; what it searches is the whole gallery.",
        *own_notes(candidates, tests),
        *training_notes(candidates),
    )
    plots = {"scores": plot_intervals(series, (column, "mAP (%)"), joined=False)}
    return Outcome(f"Scores by {column}", (Table(f"By {column}", columns, tuple(rows), notes),), plots)


def _of_group(name: str, group: Mapping[str, Any]) -> tuple[Any, ...]:
    shares = (None if group[score] is None else Share(group[score]) for score in ("rank1", "mINP"))
    return name, group["num_valid_query"], _precision(group), *shares


def _precision(group: Mapping[str, Any]) -> Interval:
    ends = (group[name] for name in ("mAP", "mAP_low", "mAP_high"))
    return Interval(*(math.nan if end is None else end for end in ends))


# --- parts of a train set ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a data set to train on.

    Attributes:
        share: of all that it is a part of, in (0, 1].
        candidate: the model that is trained on it.
        counts: its crops, people, cameras and continents.
    """

    share: float
    candidate: Candidate
    counts: Mapping[str, int]


def plan_parts(base: TrainConfig, of: Of, shares: Sequence[float]) -> tuple[Part, ...]:
    """Return the parts that are trained on, each within the next larger one.

    Args:
        base: the training on everything, on one data set.
        of: what there is less of.
        shares: in (0, 1].

    Raises:
        ExperimentError: a share is not in (0, 1], or two of them make the same part.
        DatasetNotFoundError, SplitNotFoundError, ManifestError: see `CropDataset`.
    """
    (place,) = base.datasets
    parts: list[Part] = []
    for share in sorted(shares):
        if not 0 < share <= 1:
            raise ExperimentError(place, f"a share of {share:g} is not in (0, 1]")
        config = _part(base, of, share)
        part = Part(share, Candidate(f"{100 * share:g} % of {of}", config), training_crops(config, place))
        if parts and part.counts[of] == parts[-1].counts[of]:
            what = f"shares {parts[-1].share:g} and {share:g} of its {of} are the same {part.counts[of]}"
            raise ExperimentError(place, f"{what}: leave one of them out")
        parts.append(part)
    return tuple(parts)


def _part(base: TrainConfig, of: Of, share: float) -> TrainConfig:
    if share == 1:
        return base
    if of == "people":
        return replace(base, people_share=share)
    crops = CropDataset(base.datasets[0], training_split(base, base.datasets[0]))
    if of == "cameras":
        return replace(base, only_cameras=nested_share(count_values(crops.camids)[0].tolist(), share, base.seed))
    return replace(base, only_continents=nested_share(crops.continent_names, share, base.seed))


def score_parts(
    bench: Bench, parts: Sequence[Part], tests: Sequence[DataSet], of: Of, protocol: str = "market1501"
) -> Outcome:
    """Return what models score that were trained on parts of a data set, as many steps on each.

    Raises:
        See `score_candidates`.
    """
    tasks = [Task(test, protocol) for test in tests]
    results = score_candidates(bench, [(part.candidate, tasks) for part in parts])
    candidates = [part.candidate for part in parts]
    rows = tuple(
        (Share(part.share), *part.counts.values(), *(one.metrics["mAP"] for one in scored))
        for part, scored in zip(parts, results, strict=True)
    )
    columns = (f"share of {of} (%)", *parts[0].counts, *(f"mAP on {test.name}" for test in tests))
    notes = (
        "Trained in the same way, as many steps on each part; a part holds every smaller one.",
        *own_notes(candidates, tests),
        *training_notes(candidates),
    )
    series = {
        test.name: {
            f"{100 * part.share:g}": scored[at].metrics["mAP"] for part, scored in zip(parts, results, strict=True)
        }
        for at, test in enumerate(tests)
    }
    plots = {"scores": plot_intervals(series, (f"share of {of} (%)", "mAP (%)"), joined=True)}
    return Outcome(f"Score against the share of {of}", (Table(f"By share of {of}", columns, rows, notes),), plots)
