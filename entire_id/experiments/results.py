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

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from entire_id.errors import ExperimentError, OutputExistsError
from entire_id.evaluation.breakdown import Interval, none_if_nan
from entire_id.evaluation.comparison import Comparison, compare_queries
from entire_id.evaluation.scores import Scores
from entire_id.loading.files import Files, open_files
from entire_id.loading.index import fetch_manifest
from entire_id.records import CAMERAS_FILE
from entire_id.staging import alone, rewrite

__all__ = [
    "DataSet",
    "Request",
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
_MAX_NAME_BYTES = 150  # a file system takes 255, and endings follow
_PACKAGES = ("entire-id", "numpy", "pillow", "simplejpeg", "torch", "transformers", "accelerate", "scikit-learn")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A packed data set in an experiment.

    Attributes:
        name: what it is called there, unique.
        path: where it lies: a folder, a repository at a commit, or a URL.
        title: what its manifest calls it.
        version: of its content.
        content_sha256: what its content is.
        cameras_sha256: what `cameras.csv` says by now, which owners may add columns to.
    """

    name: str
    path: str
    title: str
    version: str
    content_sha256: str
    cameras_sha256: str

    def facts(self) -> dict[str, str]:
        """Return what results say of it: where it lies does not count."""
        names = ("name", "version", "content_sha256", "cameras_sha256")
        return {name: getattr(self, name) for name in names}


def find_datasets(places: Iterable[str]) -> dict[str, DataSet]:
    """Return the data set in each place, called as its folder is, or as its manifest says if it lies elsewhere.

    Of one name, they are `name`, `name-2` ….

    Args:
        places: folders, repositories and URLs; see `open_files`.

    Raises:
        DatasetNotFoundError: there is none.
        RepositoryNotFoundError, DownloadError: it lies elsewhere, and cannot be fetched.
        ManifestError: one is damaged.
    """
    sets: dict[str, DataSet] = {}
    found = {}
    for place in places:
        files = open_files(place)
        path = str(Path(files.name).expanduser().resolve()) if files.is_local else files.name
        if path not in sets:
            manifest = fetch_manifest(files)
            name = _unique(Path(path).name if files.is_local else manifest.name, [one.name for one in sets.values()])
            cameras = hashlib.sha256(_read_cameras(files)).hexdigest()
            sets[path] = DataSet(name, path, manifest.name, manifest.version, manifest.content_sha256, cameras)
        found[place] = sets[path]
    return found


def _read_cameras(files: Files) -> bytes:
    try:
        return files.read(CAMERAS_FILE)
    except FileNotFoundError:
        return b""


def _unique(name: str, taken: Sequence[str]) -> str:
    others = {safe_name(other) for other in taken}
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(others) + 2))
    return next(one for one in names if safe_name(one) not in others)


def safe_name(name: str) -> str:
    """Return a name that a file can have: what cannot stand in it becomes a hyphen.

    >>> safe_name("owner/name"), safe_name("a + b")
    ('owner-name', 'a-b')
    """
    safe = re.sub(r"[^\w.]+", "-", name).strip("-.") or "unnamed"
    if len(safe.encode()) <= _MAX_NAME_BYTES:
        return safe
    short = safe.encode()[: _MAX_NAME_BYTES - 17].decode(errors="ignore")
    return f"{short}-{xxhash.xxh3_64_hexdigest(name.encode())}"


@dataclass(frozen=True, slots=True)
class Request:
    """What an experiment is asked.

    Attributes:
        experiment: its name.
        asked: of what, in plain values: it may be something else, or more, the next time.
        datasets: all that enter, by role: `train` and `test`.
        training: settings of the networks that are trained; None where none is.
        weights: what these begin with, by name of the network.
    """

    experiment: str
    asked: Mapping[str, Any]
    datasets: Mapping[str, Sequence[DataSet]]
    training: Mapping[str, Any] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)

    def stated(self) -> dict[str, Any]:
        """Return it in plain values."""
        sets = {role: [one.facts() for one in of] for role, of in self.datasets.items()}
        contents = {one.name: one.content_sha256 for of in self.datasets.values() for one in of}
        return dict(json.loads(json.dumps(asdict(self) | {"datasets": sets, "contents": contents})))


@contextmanager
def begin_experiment(out: Path, request: Request) -> Iterator[list[str]]:
    """Write to the folder `out` what is about to be done; give what is to be said, and the folder to nobody else.

    One that was begun there goes on, also with more to do: every result says what it was made of, so that what holds is
    taken over. How networks are trained, what they begin with, and the content of a data set must be the same.

    Raises:
        OutputExistsError: `out` holds something else than an experiment, lies in a data set, or cannot be made.
        ExperimentError: it holds another one, or another process is at work there.
    """
    target = out.expanduser().resolve()
    for one in (one for of in request.datasets.values() for one in of):
        if target.is_relative_to(one.path):
            raise OutputExistsError(out, f"it lies in the data set {one.name!r}, and would damage it")
    _make_folder(out)
    with alone(out, ExperimentError(out, "another process is at work there. Wait for it, or name a new folder")):
        yield _claim(out, request.stated())


def _claim(out: Path, stated: dict[str, Any]) -> list[str]:
    file, versions = out / _EXPERIMENT_FILE, _versions()
    if not file.is_file():
        write_json(file, stated | {"packages": [versions]})
        return []
    there = _read_experiment(out)
    if differing := _differing(there, stated):
        advice = "Give the same to go on with it, or a new folder"
        raise ExperimentError(out, f"it holds another experiment: {'; '.join(differing)}. {advice}")
    kept = {name: there[name] | stated[name] for name in ("weights", "contents")}
    kept["training"] = stated["training"] or there["training"]
    packages = there["packages"]
    told = [
        f"{name} is {versions.get(name)} by now, and was {old} when this began"
        for name, old in packages[-1].items()
        if versions.get(name) != old
    ]
    write_json(file, stated | kept | {"packages": [*packages, versions] if told else packages})
    return told


def _make_folder(out: Path) -> None:
    ours = {".lock", f"{_EXPERIMENT_FILE}.partial"}  # of a run that was killed just then
    if (out / _EXPERIMENT_FILE).is_file():
        return
    if out.exists() and (not out.is_dir() or any(path.name not in ours for path in out.iterdir())):
        raise OutputExistsError(out, "it holds something else than an experiment")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(out, f"it cannot be made ({error.strerror})") from error


def _differing(there: Mapping[str, Any], stated: Mapping[str, Any]) -> list[str]:
    """Return what a result of the one would not be of the other, each with both values."""
    pairs = [("experiment", there["experiment"], stated["experiment"])]
    if there["training"] and stated["training"]:
        pairs += [(name, there["training"].get(name), value) for name, value in stated["training"].items()]
    for what in ("weights", "contents"):
        old = there[what]
        pairs += [(f"{what} of {name}", old.get(name, value), value) for name, value in stated[what].items()]
    return [f"{name} {before!r} there, {now!r} now" for name, before, now in pairs if before != now]


def _read_experiment(out: Path) -> dict[str, Any]:
    try:
        there = json.loads((out / _EXPERIMENT_FILE).read_bytes())
        if {field.name for field in fields(Request)} | {"packages", "contents"} == there.keys():
            return dict(there)
    except (OSError, ValueError, AttributeError) as error:
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


def read_result(path: str | Path) -> Result | None:
    """Return the result in a file; None where there is none, or no whole one."""
    try:
        return Result.from_dict(json.loads(Path(path).read_bytes()))
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
