"""What a model loses on a continent or a camera that it has not seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from entire_id.errors import ExperimentError
from entire_id.evaluation.labels import PairIndex
from entire_id.evaluation.plots import plot_intervals
from entire_id.evaluation.protocols import find_protocol
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.notes import training_notes
from entire_id.experiments.results import DataSet, Result, compare_results
from entire_id.experiments.subsets import training_split
from entire_id.experiments.tables import Difference, Outcome, Row, Table
from entire_id.loading.dataset import CropDataset
from entire_id.loading.files import open_files
from entire_id.loading.index import fetch_manifest
from entire_id.loading.integers import count_values
from entire_id.score import read_labels

__all__ = ["HeldOut", "find_groups", "leave_one_out", "plan_held_out"]

By = Literal["continent", "camera"]

_PROTOCOLS = {"continent": "leave_one_continent_out", "camera": "market1501"}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A group that is left out.

    Attributes:
        name: of the group, as the column of the queries has it.
        training: how the model is trained that has not seen it.
    """

    name: str
    training: TrainConfig


def plan_held_out(base: TrainConfig, test: DataSet, by: By, chosen: Sequence[str] = ()) -> tuple[HeldOut, ...]:
    """Return the groups that are left out, each with its training.

    Args:
        base: the training on everything, on one data set.
        test: where the groups are tested.
        by: what makes a group.
        chosen: which groups; see `find_groups`.

    Raises:
        ExperimentError: a group that is asked for is not in both, or there are fewer than two to train on.
        DatasetNotFoundError, SplitNotFoundError, ManifestError: see `CropDataset`.
    """
    trained, asked = find_groups(base, test, by, chosen)
    return tuple(HeldOut(name, _without(base, trained, by, name)) for name in asked)


def find_groups(
    base: TrainConfig, test: DataSet, by: By, chosen: Sequence[str] = ()
) -> tuple[Sequence[str], Sequence[str]]:
    """Return all groups of the train part, and those of them that are asked for.

    By default these are all that have a query with a right crop in the gallery.

    Raises:
        See `plan_held_out`.
    """
    (place,) = base.datasets
    if by == "camera" and fetch_manifest(open_files(place)).content_sha256 != test.content_sha256:
        raise ExperimentError(
            test.path, f"camera numbers of {place} mean nothing in it. Test on the set that is trained on"
        )
    trained = _groups(CropDataset(place, training_split(base, place)), by)
    if len(trained) < 2:
        hint = "; cameras.csv says where cameras stand: see entire-id pack" if by == "continent" else ""
        raise ExperimentError(place, f"its {base.split} part is of one {by}, {trained[0]!r}: none is left{hint}")
    labels = read_labels(test.path)
    is_scored = PairIndex(labels, find_protocol(_PROTOCOLS[by])).num_positives() > 0
    queries = labels.query_camids if by == "camera" else labels.query_columns["continent"]
    asked = set(queries[is_scored].astype(str).tolist())
    common = [name for name in trained if name in asked]
    if unknown := [name for name in chosen if name not in common] or ([] if common else ["at all"]):
        raise ExperimentError(
            place,
            f"no {by} {unknown[0]} in both train part and queries that can be scored; "
            f"there is {', '.join(common) or 'none'}",
        )
    return trained, list(dict.fromkeys(chosen)) or common


def _groups(crops: CropDataset, by: By) -> list[str]:
    if by == "camera":
        return [str(camid) for camid in count_values(crops.camids)[0].tolist()]
    return [crops.continent_names[number] for number in count_values(crops.continents)[0].tolist()]


def _without(base: TrainConfig, groups: Sequence[str], by: By, name: str) -> TrainConfig:
    rest = [group for group in groups if group != name]
    if by == "camera":
        return replace(base, only_cameras=tuple(map(int, rest)))
    return replace(base, only_continents=tuple(rest))


def leave_one_out(bench: Bench, base: TrainConfig, test: DataSet, by: By, groups: Sequence[HeldOut]) -> Outcome:
    """Return what a model scores on the queries of each group, trained with it and without it, as many steps.

    A left-out continent is searched within its own crops, a camera's queries in the whole gallery.

    Raises:
        See `score_candidates`.
    """
    tasks = [Task(test, _PROTOCOLS[by], where=(by, group.name)) for group in groups]
    without = [Candidate(f"without {by} {group.name}", group.training) for group in groups]
    asked = [(Candidate("everything", base), tasks), *((one, [task]) for one, task in zip(without, tasks, strict=True))]
    seen, *others = score_candidates(bench, asked)
    unseen = [result for (result,) in others]
    rows = tuple(_row(bench, group.name, *pair) for group, *pair in zip(groups, seen, unseen, strict=True))
    columns = (by, "queries", "mAP with", "mAP without", "difference", "Rank-1 with", "Rank-1 without")
    notes = (
        "With: trained on everything. Without: trained in the same way, as many steps, on the crops of all other "
        f"{by}s. Difference: without less with, on the same queries, with its paired 95 % interval.",
        f"Scored by protocol {seen[0].facts['protocol']}.",
        *training_notes(without),
    )
    series = {
        name: {group.name: one.metrics["mAP"] for group, one in zip(groups, results, strict=True)}
        for name, results in (("with", seen), ("without", unseen))
    }
    plots = {"scores": plot_intervals(series, (f"{by} of the queries", "mAP (%)"), joined=False)}
    return Outcome(f"Leave one {by} out", (Table(f"By {by}", columns, rows, notes),), plots)


def _row(bench: Bench, name: str, seen: Result, unseen: Result) -> Row:
    gap = compare_results(seen, unseen, bench.out).differences["mAP"]
    both = seen, unseen
    return (
        name,
        seen.counts["num_valid_query"],
        *(one.metrics["mAP"] for one in both),
        Difference.of(gap),
        *(one.metrics["rank1"] for one in both),
    )
