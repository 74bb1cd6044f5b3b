"""What it brings to go on training inside one camera: an open question of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from entire_id.errors import ExperimentError
from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.held_out import find_groups
from entire_id.experiments.notes import training_notes
from entire_id.experiments.results import DataSet, Result, compare_results
from entire_id.experiments.subsets import training_split
from entire_id.experiments.tables import Difference, Outcome, Row, Table
from entire_id.loading.dataset import CropDataset

__all__ = ["Cameras", "find_cameras", "intra_camera"]

_VARIANTS = ("across", "gone on across", "fine-tuned", "inside alone")


@dataclass(frozen=True, slots=True)
class Cameras:
    """Which cameras are compared.

    Attributes:
        compared: these.
        left_out: those that have queries, but too few people to train on.
    """

    compared: tuple[int, ...]
    left_out: tuple[int, ...] = ()


def find_cameras(base: TrainConfig, test: DataSet, chosen: Sequence[str] = ()) -> Cameras:
    """Return the cameras that are compared: those asked for, or all of `find_groups` with people for a batch.

    Raises:
        ExperimentError: a camera that is asked for is not in both, there is only one, or none has people enough.
        DatasetNotFoundError, SplitNotFoundError, ManifestError: see `CropDataset`.
    """
    asked = tuple(map(int, find_groups(base, test, "camera", chosen)[1]))
    if chosen:
        return Cameras(asked)
    (place,) = base.datasets
    crops = CropDataset(place, training_split(base, place))
    seen = np.unique(np.stack([crops.camids, crops.pids]), axis=1)[0]
    found = {camid: int((seen == camid).sum()) >= base.p for camid in asked}
    if not any(found.values()):
        raise ExperimentError(place, f"no camera has seen {base.p} people, as many as a batch takes; lower p")
    compared = tuple(camid for camid, is_enough in found.items() if is_enough)
    return Cameras(compared, tuple(camid for camid, is_enough in found.items() if not is_enough))


def intra_camera(bench: Bench, base: TrainConfig, tuning: TrainConfig, test: DataSet, which: Cameras) -> Outcome:
    """Return what four models score on the queries of each camera, searched in the whole gallery.

    One is trained across all cameras. Two go on from there, as many steps: with the crops of all cameras, and with
    those of that camera alone. One is trained on these from the start, as many steps as the first.

    Args:
        bench: where it works.
        base: the training across cameras.
        tuning: the training that goes on, but for model and cameras.
        test: whose queries are asked.
        which: the cameras.

    Raises:
        See `score_candidates`.
    """
    cameras = which.compared
    tasks = [Task(test, where=("camera", str(camera))) for camera in cameras]
    across = Candidate("across cameras", base)
    inside = [
        Candidate(f"{name} camera {camera}", replace(config, only_cameras=(camera,)), start=start)
        for name, config, start in (("fine-tuned inside", tuning, across), ("inside alone", base, None))
        for camera in cameras
    ]
    gone_on = Candidate("gone on across cameras", tuning, start=across)
    asked = [(across, tasks), (gone_on, tasks), *((one, [task]) for one, task in zip(inside, tasks * 2, strict=True))]
    first, second, *others = score_candidates(bench, asked)
    alone = [result for (result,) in others]
    found = [first, second, alone[: len(cameras)], alone[len(cameras) :]]
    rows = tuple(_row(bench, camera, *four) for camera, *four in zip(cameras, *found, strict=True))
    columns = ("camera", "queries", *(f"mAP {name}" for name in _VARIANTS), "fine-tuned less gone on across")
    notes = (
        f"Across: trained on all cameras, {base.steps:,} steps. Gone on across: {tuning.steps:,} more on all cameras. "
        f"Fine-tuned: {tuning.steps:,} more on the crops of the camera alone. Inside alone: trained on these from the "
        "start. The difference is on the same queries, with its paired 95 % interval.",
        f"Scored by protocol {found[0][0].facts['protocol']}: the right crops of a query are those of other cameras.",
        *_left_out(base, which),
        *training_notes([across]),
    )
    series = {
        name: {str(camera): one.metrics["mAP"] for camera, one in zip(cameras, results, strict=True)}
        for name, results in zip(_VARIANTS, found, strict=True)
    }
    plots = {"scores": plot_intervals(series, ("camera of the queries", "mAP (%)"), joined=False)}
    return Outcome("Training inside one camera", (Table("By camera", columns, rows, notes),), plots)


def _left_out(base: TrainConfig, which: Cameras) -> list[str]:
    if not which.left_out:
        return []
    names = ", ".join(map(str, which.left_out))
    return [f"Left out, with fewer than {base.p} people in {base.split!r}, as many as a batch takes: camera {names}."]


def _row(bench: Bench, camera: int, across: Result, gone_on: Result, tuned: Result, alone: Result) -> Row:
    gap = compare_results(gone_on, tuned, bench.out).differences["mAP"]
    scores = (one.metrics["mAP"] for one in (across, gone_on, tuned, alone))
    return (str(camera), across.counts["num_valid_query"], *scores, Difference.of(gap))
