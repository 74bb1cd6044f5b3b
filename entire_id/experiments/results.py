"""What an experiment leaves: a folder that says what was done with what, and of every score the AP of each query.

    OUT/
      experiment.json          settings, packages, content of every data set; written first
      runs/<candidate>/        trainings, as `entire-id train` leaves them
      features/<candidate>/<set>/   features, as `entire-id embed` leaves them
      scores/<candidate>/<name>.json   a `Result`
      table.md, table.json, *.png      what is read of them; written last

Every file has its name only when it is complete, and what is there is not done again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from entire_id.errors import ExperimentError, OutputExistsError
from entire_id.evaluation.breakdown import Interval, none_if_nan
from entire_id.evaluation.comparison import Comparison, compare_queries
from entire_id.evaluation.scores import Scores
from entire_id.shards.manifest import read_manifest
from entire_id.staging import rewrite

__all__ = [
    "DataSet",
    "Result",
    "begin_experiment",
    "compare_results",
    "find_datasets",
    "interval_values",
    "read_result",
    "safe_name",
    "write_json",
]

Floats = npt.NDArray[np.float64]

_EXPERIMENT_FILE = "experiment.json"
_PACKAGES = ("entire-id", "numpy", "pillow", "simplejpeg", "torch", "transformers", "accelerate", "scikit-learn")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A packed data set in an experiment.

    Attributes:
        name: what it is called there, unique.
        path: folder where it lies.
        version: of its content.
        content_sha256: what its content is.
    """

    name: str
    path: str
    version: str
    content_sha256: str

    def facts(self) -> dict[str, str]:
        """Return what results say of it: where it lies does not count."""
        return {"name": self.name, "version": self.version, "content_sha256": self.content_sha256}


def find_datasets(folders: Iterable[str]) -> dict[str, DataSet]:
    """Return the data set in each folder, called as that is; of one name, `name`, `name-2` ….

    Raises:
        DatasetNotFoundError: there is none in a folder.
        ManifestError: one is damaged.
    """
    places: dict[Path, DataSet] = {}
    found = {}
    for folder in folders:
        place = Path(folder).expanduser().resolve()
        if place not in places:
            manifest = read_manifest(place)
            name = _unique(place.name, [one.name for one in places.values()])
            places[place] = DataSet(name, str(place), manifest.version, manifest.content_sha256)
        found[folder] = places[place]
    return found


def _unique(name: str, taken: Sequence[str]) -> str:
    others = {safe_name(other) for other in taken}
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(others) + 2))
    return next(one for one in names if safe_name(one) not in others)


def safe_name(name: str) -> str:
    """Return a name that a file can have: what cannot stand in it becomes a hyphen.

    >>> safe_name("owner/name"), safe_name("a + b")
    ('owner-name', 'a-b')
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "unnamed"


def begin_experiment(out: Path, name: str, settings: Mapping[str, Any], datasets: Iterable[DataSet]) -> None:
    """Write to the folder `out` what is about to be done, or make sure that it is what was begun there.

    Args:
        out: folder to make, or to go on in.
        name: of the experiment.
        settings: in plain values; all that the result depends on.
        datasets: all that enter.

    Raises:
        OutputExistsError: `out` holds something else than an experiment.
        ExperimentError: it holds another one.
    """
    sets = [one.facts() for one in {one.name: one for one in datasets}.values()]
    stated = json.loads(json.dumps({"experiment": name, "settings": settings, "datasets": sets}))
    file = out / _EXPERIMENT_FILE
    if file.is_file():
        there = _read_experiment(out)
        differing = [*_differing(there["settings"], stated["settings"]), *_differing(there, stated, {"settings"})]
        if differing:
            raise ExperimentError(
                out, f"it holds another experiment: {'; '.join(differing)}. Give the same to go on, or a new folder"
            )
        return
    partial = f"{_EXPERIMENT_FILE}.partial"  # of a run that was killed just then
    if out.exists() and (not out.is_dir() or any(path.name != partial for path in out.iterdir())):
        raise OutputExistsError(out, "it holds something else than an experiment")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, stated | {"packages": _versions()})


def _differing(there: Mapping[str, Any], stated: Mapping[str, Any], but: Iterable[str] = ()) -> list[str]:
    return [
        f"{name} {there.get(name)!r} there, {value!r} now"
        for name, value in stated.items()
        if name not in but and there.get(name) != value
    ]


def _read_experiment(out: Path) -> dict[str, Any]:
    try:
        there = json.loads((out / _EXPERIMENT_FILE).read_bytes())
        if isinstance(there["settings"], dict):
            return dict(there)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(out, f"its {_EXPERIMENT_FILE} is not that of an experiment") from error
    raise OutputExistsError(out, f"its {_EXPERIMENT_FILE} is not that of an experiment")


def _versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: object) -> None:
    """Write plain values to a file, which is there at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rewrite(path, lambda _: (json.dumps(value, indent=1) + "\n").encode())


# --- scores -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one model scored on the queries of one data set.

    Attributes:
        facts: which model, data set, protocol and queries, in plain values.
        metrics: mAP, rank1, rank5, rank10 and mINP with 95 % intervals.
        counts: queries, those with a positive, gallery crops.
        groups: scores by value of a column, as `Breakdown.to_dict` has them, by column.
        keys: of the queries.
        pids: (q,) int64 whose they are.
        counted: (q,) 1 for the queries that the means run over, else 0.
        values: (q,) each: AP, hits and INP by the names of their means; NaN where a query was skipped.
    """

    facts: Mapping[str, Any]
    metrics: Mapping[str, Interval]
    counts: Mapping[str, int]
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
    keys: tuple[str, ...]
    pids: npt.NDArray[np.int64]
    counted: Floats
    values: Mapping[str, Floats]

    @classmethod
    def of(cls, scores: Scores, keys: Sequence[str], columns: Iterable[str], facts: Mapping[str, Any]) -> Self:
        """Return what is kept of scores, broken down by `columns`.

        Raises:
            EvaluationError: there is no such column, or it cannot be put into groups.
        """
        counts = {name: getattr(scores, name) for name in ("num_query", "num_valid_query", "num_gallery")}
        groups = {column: scores.by(column).to_dict() for column in columns}
        stated = {**facts, "protocol": scores.protocol.title, "tie": scores.tie, "warnings": list(scores.warnings)}
        pids = scores.labels.query_pids
        return cls(stated, scores.intervals(), counts, groups, tuple(keys), pids, scores.counted, scores.by_query())

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain values, ready for JSON."""
        per_query = {name: [none_if_nan(value) for value in of.tolist()] for name, of in self.values.items()}
        return {
            **self.facts,
            **self.counts,
            "metrics": {name: interval_values(one) for name, one in self.metrics.items()},
            "by": dict(self.groups),
            "queries": {
                "key": list(self.keys),
                "pid": self.pids.tolist(),
                "counted": self.counted.astype(int).tolist(),
                **per_query,
            },
        }

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave."""
        rest = dict(stated)
        queries, metrics, groups = dict(rest.pop("queries")), rest.pop("metrics"), rest.pop("by")
        counts = {name: rest.pop(name) for name in ("num_query", "num_valid_query", "num_gallery")}
        keys, pids, counted = (queries.pop(name) for name in ("key", "pid", "counted"))
        return cls(
            rest,
            {name: Interval(*(math.nan if end is None else end for end in one)) for name, one in metrics.items()},
            counts,
            groups,
            tuple(keys),
            np.array(pids, np.int64),
            np.array(counted, np.float64),
            {name: np.array(of, np.float64) for name, of in queries.items()},
        )


def interval_values(one: Interval) -> list[float | None]:
    """Return an interval in plain values: number, lower and upper end."""
    return [none_if_nan(value) for value in asdict(one).values()]


def read_result(path: Path) -> Result | None:
    """Return the result in a file; None where there is none, or no whole one."""
    try:
        return Result.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def compare_results(first: Result, second: Result, where: str | Path) -> Comparison:
    """Return how the second result differs from the first on the same queries: see `compare`.

    Args:
        first: one result.
        second: another.
        where: what is compared, for messages.

    Raises:
        ExperimentError: they are not of the same queries and gallery, or not by the same protocol.
    """
    for name in ("protocol", "tie"):
        if first.facts[name] != second.facts[name]:
            raise ExperimentError(where, f"{name} {first.facts[name]!r} and {second.facts[name]!r} cannot be compared")
    if first.facts["gallery_sha256"] != second.facts["gallery_sha256"]:
        counts = " and ".join(f"{one.counts['num_gallery']:,}" for one in (first, second))
        raise ExperimentError(where, f"the two searched other crops: galleries of {counts}, or of other people")
    order = {key: row for row, key in enumerate(second.keys)}
    if order.keys() != set(first.keys):
        alone = sorted(order.keys() ^ set(first.keys))
        raise ExperimentError(where, f"{len(alone):,} queries are in one of the two alone, {alone[0]!r} among them")
    rows = np.array([order[key] for key in first.keys])
    if not (np.array_equal(first.pids, second.pids[rows]) and np.array_equal(first.counted, second.counted[rows])):
        raise ExperimentError(where, "the two give a query to other people, or count other queries")
    others = {name: of[rows] for name, of in second.values.items()}
    return compare_queries(first.values, others, first.counted, first.pids)
