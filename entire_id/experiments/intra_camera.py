"""What it brings to go on training inside one camera: an open question of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from entire_id.evaluation.plots import plot_intervals
from entire_id.experiments.bench import Bench, Candidate, Task, score_candidates
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.held_out import find_groups
from entire_id.experiments.results import DataSet, Result, compare_results
from entire_id.experiments.tables import Difference, Outcome, Row, Table

__all__ = ["find_cameras", "intra_camera"]

_VARIANTS = ("across", "fine-tuned", "inside alone")


def find_cameras(base: TrainConfig, test: DataSet, chosen: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the cameras that are compared: see `find_groups`.

    Raises:
        ExperimentError: a camera that is asked for is not in both, or there is only one.
        DatasetNotFoundError, SplitNotFoundError, ManifestError: see `CropDataset`.
    """
    return tuple(map(int, find_groups(base, test, "camera", chosen)[1]))


def intra_camera(
    bench: Bench, base: TrainConfig, tuning: TrainConfig, test: DataSet, cameras: Sequence[int]
) -> Outcome:
    """Return what three models score on the queries of each camera, searched in the whole gallery.

    One is trained across all cameras; one goes on from there with the crops of that camera alone; one is trained on
    these from the start, as many steps as the first.

    Args:
        bench: where it works.
        base: the training across cameras.
        tuning: the training that goes on, but for model and cameras.
        test: whose queries are asked.
        cameras: which cameras.

    Raises:
        See `score_candidates`.
    """
    tasks = [Task(test, where=("camera", str(camera))) for camera in cameras]
    across = Candidate("across cameras", base)
    inside = [
        Candidate(f"{name} camera {camera}", replace(config, only_cameras=(camera,)), start=start)
        for name, config, start in (("fine-tuned inside", tuning, across), ("inside alone", base, None))
        for camera in cameras
    ]
    asked = [(across, tasks), *((one, [task]) for one, task in zip(inside, tasks * 2, strict=True))]
    first, *others = score_candidates(bench, asked)
    alone = [result for (result,) in others]
    found = [first, alone[: len(cameras)], alone[len(cameras) :]]
    rows = tuple(_row(bench, camera, *three) for camera, *three in zip(cameras, *found, strict=True))
    columns = ("camera", "queries", *(f"mAP {name}" for name in _VARIANTS), "fine-tuned less across")
    notes = (
        "Across: trained on all cameras. Fine-tuned: gone on from there with the crops of the camera alone. Inside "
        "alone: trained on these from the start. The difference is on the same queries, with its paired 95 % interval.",
        f"Scored by protocol {found[0][0].facts['protocol']}: the right crops of a query are those of other cameras.",
    )
    series = {
        name: {str(camera): one.metrics["mAP"] for camera, one in zip(cameras, results, strict=True)}
        for name, results in zip(_VARIANTS, found, strict=True)
    }
    plots = {"scores": plot_intervals(series, ("camera of the queries", "mAP (%)"), joined=False)}
    return Outcome("Training inside one camera", (Table("By camera", columns, rows, notes),), plots)


def _row(bench: Bench, camera: int, across: Result, tuned: Result, alone: Result) -> Row:
    gap = compare_results(across, tuned, bench.out).differences["mAP"]
    scores = (one.metrics["mAP"] for one in (across, tuned, alone))
    return (str(camera), across.counts["num_valid_query"], *scores, Difference.of(gap))
