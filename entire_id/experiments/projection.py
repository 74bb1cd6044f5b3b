"""Features of several data sets in one plane, and how far the sets lie apart in numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entire_id.errors import EvaluationError, MissingExtraError
from entire_id.evaluation.plots import plot_plane
from entire_id.experiments.bench import Bench, Candidate, embed_splits, open_candidate
from entire_id.experiments.gap import kernel_width, measure_gap
from entire_id.experiments.results import DataSet, safe_name, write_json
from entire_id.experiments.tables import Outcome, Row, Table
from entire_id.loading.embed import Features, read_features
from entire_id.loading.reader import CropReader

__all__ = ["ProjectionConfig", "check_sklearn", "project_sets"]


@dataclass(frozen=True, slots=True)
class ProjectionConfig:
    """How features are put into a plane.

    Attributes:
        split: whose crops are taken; their features alone are computed.
        crops: of each data set at most, drawn from the seed.
        perplexity: of t-SNE: about how many neighbours of a crop count.
        seed: of draws and of t-SNE.
    """

    split: str = "query"
    crops: int = 1000
    perplexity: float = 30.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """Crops of one data set: features, people, and by what they can be coloured."""

    values: npt.NDArray[np.float32]
    pids: npt.NDArray[np.int32]
    keys: list[str]
    columns: Mapping[str, npt.NDArray[Any]]


def check_sklearn() -> None:
    """Make sure that there is a t-SNE.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import sklearn.manifold  # noqa: F401 whether it is there
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "t-SNE", "plots") from error


def project_sets(bench: Bench, candidate: Candidate, sets: Sequence[DataSet], config: ProjectionConfig) -> Outcome:
    """Return t-SNE pictures, coloured by set, camera and continent, and the domain gap of every pair of sets.

    The gaps are measured on the features themselves, not in the plane. `points.json` says where every crop lies.

    Raises:
        MissingExtraError: scikit-learn or matplotlib is not installed.
        EvaluationError: there are too few crops or people.
        See `open_candidate` and `embed` for the others.
    """
    check_sklearn()
    rows = [_choose(one, config) for one in sets]
    if (num_crops := sum(map(len, rows))) <= 3 * config.perplexity:
        few = f"{num_crops} crops; it needs more than three times as many"
        raise EvaluationError(f"perplexity {config.perplexity:g} is too high for {few}")
    model = open_candidate(bench, candidate)
    bench.begin()
    taken = {}
    for one, chosen in zip(sets, rows, strict=True):
        name = f"{safe_name(one.name)}.{config.split}"
        folder = embed_splits(bench, candidate, model, one, name, (config.split,))
        taken[one.name] = _take(one, read_features(one.path, config.split, folder), chosen)
    points = _plane(np.concatenate([one.values for one in taken.values()]), config)
    columns = {"set": np.repeat(list(taken), [len(one.keys) for one in taken.values()])}
    for column in ("continent", "camera"):
        columns[column] = np.concatenate([one.columns[column] for one in taken.values()])
    places = {"key": [key for one in taken.values() for key in one.keys], "x": points[:, 0].tolist()}
    named = {name: of.tolist() for name, of in columns.items()}
    write_json(bench.out / "points.json", {**places, "y": points[:, 1].tolist(), **named})
    plots = {f"tsne-{name}": plot_plane(points, of, name) for name, of in columns.items()}
    return Outcome(f"Features of {candidate.name}", (_gaps(taken),), plots)


def _choose(one: DataSet, config: ProjectionConfig) -> npt.NDArray[np.int64]:
    """Return the rows of the crops that are drawn, ascending."""
    with CropReader(one.path, config.split) as crops:
        pids = crops.pids
    rng = np.random.default_rng((config.seed, *one.content_sha256.encode()))
    rows = np.sort(rng.permutation(np.flatnonzero(pids >= 0))[: config.crops])
    if (num_people := len(np.unique(pids[rows]))) < 2:
        raise EvaluationError(f"{one.name}: a domain gap needs at least 2 people in {config.split}, not {num_people}")
    return rows


def _take(one: DataSet, features: Features, rows: npt.NDArray[np.int64]) -> _Taken:
    cameras = np.char.add(f"{one.name} ", features.camids[rows].astype(str))
    columns = {"camera": cameras, "continent": features.columns["continent"][rows].astype(str)}
    return _Taken(features.values[rows], features.pids[rows], [features.keys[row] for row in rows.tolist()], columns)


def _plane(values: npt.NDArray[np.float32], config: ProjectionConfig) -> npt.NDArray[np.float64]:
    """Return (n, 2) places of n features, which are given unit length."""
    from sklearn.manifold import TSNE

    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    tsne = TSNE(2, perplexity=config.perplexity, init="pca", random_state=config.seed)
    places: npt.NDArray[np.float64] = tsne.fit_transform(unit).astype(np.float64)
    return places


def _gaps(taken: Mapping[str, _Taken]) -> Table:
    rows: list[Row] = []
    width = kernel_width([one.values for one in taken.values()])
    for first, second in itertools.combinations(taken, 2):
        pair = [taken[first], taken[second]]
        gap = measure_gap([one.values for one in pair], [one.pids for one in pair], width)
        rows.append((first, second, *(len(one.keys) for one in pair), gap.value, gap.low, gap.high))
    columns = ("set", "other set", "crops", "other crops", "MMD²", "from", "to")
    notes = (
        "Squared maximum mean discrepancy of the features themselves, at unit length, not of the picture, and between "
        "what 95 % of samples of people lie. It is about 0 for two samples of one domain, of different people, and at "
        "most 2; all rows have one kernel. Sets that share people or crops cannot be compared in this way.",
    )
    return Table("Domain gaps", columns, tuple(rows), notes)
