"""Where candidates meet data sets: trained or opened, embedded, scored, and nothing of it twice."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from entire_id.errors import EntireIdError, EvaluationError, ExperimentError
from entire_id.evaluation.labels import Labels
from entire_id.experiments.config import TrainConfig
from entire_id.experiments.heads import blur_heads
from entire_id.experiments.results import DataSet, Result, read_result, safe_name, write_json
from entire_id.loading.embed import Features, are_features_of, embed
from entire_id.loading.files import open_files
from entire_id.loading.index import fetch_manifest
from entire_id.loading.models import Model, ModelOptions, is_trained, open_model
from entire_id.records import Progress, no_progress
from entire_id.score import (
    CAMERA_PAIR,
    QueryGallery,
    ScoringConfig,
    check_columns,
    read_labels,
    read_query_gallery,
    score,
)

__all__ = [
    "Bench",
    "Candidate",
    "Task",
    "check_names",
    "embed_splits",
    "open_candidate",
    "score_candidates",
    "training_facts",
]

_SCORED = ("query", "gallery")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is scored: a model that is there, or one that is trained first.

    Attributes:
        name: what tables call it.
        training: how it is trained; None for a model that is there.
        model: of a model that is there, what `open_model` takes, or a folder that `train` wrote.
        start: a candidate that is trained first, with whose network the training goes on.
    """

    name: str
    training: TrainConfig | None = None
    model: str = ""
    start: Candidate | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a candidate is asked.

    Attributes:
        test: data set whose queries search its gallery.
        protocol: by which they are scored.
        columns: by which scores are broken down.
        where: column and value of the queries that are asked; all by default.
        blur: whether heads are blurred before the model sees a crop.
    """

    test: DataSet
    protocol: str = "market1501"
    columns: tuple[str, ...] = ()
    where: tuple[str, str] | None = None
    blur: bool = False

    @property
    def features_name(self) -> str:
        """Name of the folder of its features."""
        return safe_name(self.test.name) + ("~blurred" if self.blur else "")

    @property
    def name(self) -> str:
        """Name of the file of its result."""
        protocol = [] if self.protocol == "market1501" else [safe_name(self.protocol)]
        parts = [self.features_name, *protocol, *(() if self.where is None else map(safe_name, self.where))]
        return ".".join(parts)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where an experiment works, and whom it tells.

    Attributes:
        out: its folder.
        options: how models are opened that are there.
        progress: told how far it is.
        tell: told in sentences what is done.
        begin: called once all that is asked was looked at, before anything is written.
    """

    out: Path
    options: ModelOptions = field(default_factory=ModelOptions)
    progress: Progress = no_progress
    tell: Callable[[str], None] = lambda _: None
    begin: Callable[[], None] = lambda: None

    def run(self, candidate: Candidate) -> Path:
        """Return where a candidate is trained."""
        return self.out / "runs" / safe_name(candidate.name)

    def features(self, candidate: Candidate, name: str) -> Path:
        """Return where features of a candidate lie."""
        return self.out / "features" / safe_name(candidate.name) / name

    def scores(self, candidate: Candidate, task: Task) -> Path:
        """Return where a result lies."""
        return self.out / "scores" / safe_name(candidate.name) / f"{task.name}.json"


def score_candidates(bench: Bench, asked: Sequence[tuple[Candidate, Sequence[Task]]]) -> list[list[Result]]:
    """Return what each candidate scored in each of its tasks; what an earlier run stored is read.

    All tasks, models and trainings are looked at before anything is written. What is stored is taken where it is of the
    same training or model, data, protocol and columns.

    Raises:
        ExperimentError: there are no candidates, two of one name, or one that cannot be trained.
        EvaluationError: a column or a group that is asked for is not there, or the protocol needs to know more.
        See `train`, `open_model`, `open_trained`, `embed` and `score` for the others.
    """
    tasks_of: dict[Candidate, dict[Task, None]] = {}
    for candidate, tasks in asked:
        tasks_of.setdefault(candidate, {}).update(dict.fromkeys(tasks))
    check_names(bench.out, tasks_of)
    _check_tasks({task for tasks in tasks_of.values() for task in tasks})
    made_of = _look_at(bench, tasks_of)
    bench.begin()
    found = {one: _score_tasks(bench, one, made_of[one], tasks) for one, tasks in tasks_of.items()}
    return [[found[candidate][task] for task in tasks] for candidate, tasks in asked]


def check_names(out: Path, candidates: Iterable[Candidate]) -> None:
    """Make sure that candidates can be told apart.

    Raises:
        ExperimentError: there are none, or two of one name.
    """
    folders = [safe_name(candidate.name) for candidate in candidates]
    if twice := sorted(name for name in set(folders) if folders.count(name) > 1):
        raise ExperimentError(out, f"two candidates would be called {twice[0]!r}; give them folders of other names")
    if not folders:
        raise ExperimentError(out, "there is nothing to score: name data sets to train on, or models")


def _check_tasks(tasks: Iterable[Task]) -> None:
    for place, of_place in groupby(sorted(tasks, key=_place_of), _place_of):
        every = read_labels(place)
        for task in of_place:
            labels = every if task.where is None else every.of_queries(_rows_asked(every, *task.where))
            if CAMERA_PAIR in task.columns:
                raise EvaluationError(f"the queries have no column {CAMERA_PAIR!r}: see entire-id evaluate --by")
            check_columns(labels, task.columns, task.protocol)


def _place_of(task: Task) -> str:
    return task.test.path


def _look_at(bench: Bench, candidates: Iterable[Candidate]) -> dict[Candidate, dict[str, object]]:
    """Return what makes the results of each candidate, once it is sure that it can be trained or opened.

    Raises:
        ExperimentError: one cannot be trained.
        See `open_model` and `open_trained` for the others.
    """
    weights: dict[tuple[str, str | None], str] = {}
    made_of: dict[Candidate, dict[str, object]] = {}
    for candidate in candidates:
        config = candidate.training
        if config is None:
            model = open_candidate(bench, candidate)
            made_of[candidate] = {"model": model.name, "preprocessing": json.loads(json.dumps(model.facts))}
            continue
        from entire_id.experiments.network import find_weights
        from entire_id.experiments.training import check_training

        key = config.model, config.revision
        try:
            started = _started(bench, candidate, config)
            check_training(started, bench.run(candidate), network=key not in weights)
        except EntireIdError as error:
            raise ExperimentError(bench.out, f"{candidate.name!r} cannot be trained: {error}") from error
        if key not in weights:
            weights[key] = find_weights(*key).identity
        start = None if candidate.start is None else made_of[candidate.start]
        facts = training_facts(config) | {"weights": weights[key], "start": start}
        made_of[candidate] = {"training_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}
    return made_of


def training_facts(config: TrainConfig) -> dict[str, object]:
    """Return what a training depends on besides weights: the settings, and the content of its data sets."""
    settings = {name: value for name, value in asdict(config).items() if name not in {"datasets", "num_workers"}}
    contents = [fetch_manifest(open_files(place)).content_sha256 for place in config.datasets]
    return settings | {"contents": contents}


def _score_tasks(
    bench: Bench, candidate: Candidate, made_of: Mapping[str, object], tasks: Iterable[Task]
) -> dict[Task, Result]:
    opened = _Opened(bench, candidate)
    results = {}
    for task in tasks:
        path = bench.scores(candidate, task)
        facts = {**_seen(made_of, task), "test": task.test.facts(), "asked_protocol": task.protocol}
        result = read_result(path)
        if result is None or not _is_of(result, task, facts):
            result = opened.score(task, facts)
            write_json(path, result.to_dict())
        results[task] = result
    return results


def _is_of(result: Result, task: Task, facts: Mapping[str, object]) -> bool:
    return result.groups.keys() >= set(task.columns) and all(result.facts.get(name) == of for name, of in facts.items())


def _seen(made_of: Mapping[str, object], task: Task) -> dict[str, object]:
    """Return what makes a candidate's results in a task."""
    return {**made_of, "blur": "head region" if task.blur else None}


class _Opened:
    """A candidate's model, trained and opened once it is asked for, and the features that it was asked for last."""

    def __init__(self, bench: Bench, candidate: Candidate) -> None:
        self._bench, self._candidate = bench, candidate
        self._last: tuple[str, QueryGallery, str] | None = None

    @cached_property
    def model(self) -> Model:
        return open_candidate(self._bench, self._candidate)

    def score(self, task: Task, facts: Mapping[str, object]) -> Result:
        seen = _blurred(self.model) if task.blur else self.model
        crops, gallery = self._crops(task, seen)
        if task.where is not None:
            crops = _asked(crops, *task.where)
        scores = score(crops, ScoringConfig(task.protocol), self._bench.progress)
        stated = {
            **facts,
            "candidate": self._candidate.name,
            "model": self.model.name,
            "preprocessing": dict(self.model.facts),
            "queries": "all" if task.where is None else " ".join(task.where),
            "gallery_sha256": gallery,
        }
        return Result.of(scores, crops.query.keys, task.columns, json.loads(json.dumps(stated)))

    def _crops(self, task: Task, seen: Model) -> tuple[QueryGallery, str]:
        """Return features and labels, and what is the same of the same gallery, in any order and with any pixels."""
        if self._last is None or self._last[0] != task.features_name:
            features = embed_splits(self._bench, self._candidate, seen, task.test, task.features_name, _SCORED)
            crops = read_query_gallery(task.test.path, features)
            self._last = task.features_name, crops, _digest(crops.gallery)
        return self._last[1:]


def open_candidate(bench: Bench, candidate: Candidate) -> Model:
    """Return a candidate's model, ready to run; a training that was stopped goes on."""
    folder = candidate.model if candidate.training is None else str(_train(bench, candidate, candidate.training))
    if is_trained(folder):
        from entire_id.experiments.network import open_trained

        return open_trained(folder, bench.options.device)
    if ":" in folder:
        sys.path.append(str(Path.cwd()))  # where a module of the user's own lies
    takes_options = folder != "colour" and ":" not in folder
    return open_model(folder, bench.options if takes_options else None)


def _started(bench: Bench, candidate: Candidate, config: TrainConfig) -> TrainConfig:
    """Return how a candidate is trained, with the network of the one that it goes on from, once that is there."""
    start = None if candidate.start is None else bench.run(candidate.start).resolve() / "model"
    if start is None or not is_trained(str(start)):
        return config
    return replace(config, model=str(start), revision=None)


def _train(bench: Bench, candidate: Candidate, config: TrainConfig) -> Path:
    """Train a candidate, and before it the one that it goes on from; return the folder of its network."""
    from entire_id.experiments.training import train

    if candidate.start is not None and candidate.start.training is not None:
        _train(bench, candidate.start, candidate.start.training)
    bench.tell(f"training {candidate.name}")
    return train(_started(bench, candidate, config), bench.run(candidate), bench.progress, bench.tell).model


def _digest(gallery: Features) -> str:
    labels = zip(gallery.keys, gallery.pids.tolist(), gallery.camids.tolist(), strict=True)
    return hashlib.sha256(
        "".join(f"{key}\0{pid}\0{camid}\n" for key, pid, camid in sorted(labels)).encode()
    ).hexdigest()


def embed_splits(
    bench: Bench, candidate: Candidate, model: Model, test: DataSet, name: str, splits: Sequence[str]
) -> Path:
    """Return the folder of features, which are made where they are not there. Raises as `embed`."""
    folder = bench.features(candidate, name)
    if not are_features_of(folder, test.path, splits, model):
        if caution := model.caution(test.title):
            bench.tell(caution)
        embed(test.path, splits, model, folder, bench.progress)
    return folder


def _rows_asked(labels: Labels, column: str, value: str) -> npt.NDArray[np.int64]:
    """Return the numbers of the queries whose column has that value.

    Raises:
        EvaluationError: there are none, or there is no such column.
    """
    columns = {**labels.query_columns, "camera": labels.query_camids}
    if column not in columns:
        raise EvaluationError(f"the queries have no column {column!r}; there is {', '.join(columns)}")
    rows = np.flatnonzero(columns[column].astype(str) == value)
    if not len(rows):
        raise EvaluationError(f"no query has {column} {value!r}")
    return rows


def _asked(crops: QueryGallery, column: str, value: str) -> QueryGallery:
    """Return the queries alone whose column has that value."""
    rows = _rows_asked(crops.labels, column, value)
    query = crops.query
    taken = Features(
        query.values[rows],
        query.pids[rows],
        query.camids[rows],
        [query.keys[row] for row in rows.tolist()],
        {name: of[rows] for name, of in query.columns.items()},
    )
    return QueryGallery(taken, crops.gallery, crops.labels.of_queries(rows))


def _blurred(model: Model) -> Model:
    """Return a model that sees every crop with its head region blurred."""

    def run(images: Sequence[npt.NDArray[np.uint8]], *told: object) -> object:
        return model.run([blur_heads(image) for image in images], *told)

    return replace(model, name=f"{model.name} +blurred-heads", facts={**model.facts, "blur": "head region"}, run=run)
