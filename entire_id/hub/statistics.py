"""How the crops of a data set are spread: sizes, crops and cameras per identity, cameras by continent.

Everything comes from the meta files that the manifest lists, shard by shard; no pixel is read.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from entire_id.errors import ManifestError
from entire_id.records import CAMERAS_FILE, DISTRACTOR_PID, JUNK_PID, PART_OF_SPLIT, Progress, no_progress
from entire_id.shards.check import check_file
from entire_id.shards.manifest import Manifest

__all__ = ["Histogram", "Statistics", "collect_statistics", "histogram_table", "quantile"]

Histogram = Mapping[int, int]
"""Value → how often it occurs."""

_COLUMNS = ["pid", "camid", "width", "height"]
_MOST_BINS = 12
_BAR = 20  # characters of the longest

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """How crops are spread.

    Attributes:
        widths: of all crops, px.
        heights: of all crops, px.
        crops_per_identity: of every split.
        cameras_per_identity: of every part.
        cameras_listed: cameras in `cameras.csv`.
        camera_columns: what stands there of each.
        crops_of_camera: (continent, camid) → crops, junk included.
        junk: crops that no score counts, of every split that has any.
        unlabelled: distractors whom nobody has labelled, crops of every split that has any.
        distractors: identities of the gallery without a query; 0 without queries.
        distractor_crops: their crops in the gallery.
        queries_without_positive: queries whose person is in the gallery under no other camera, junk left out.
    """

    widths: Histogram
    heights: Histogram
    crops_per_identity: dict[str, Histogram]
    cameras_per_identity: dict[str, Histogram]
    cameras_listed: int
    camera_columns: tuple[str, ...]
    crops_of_camera: dict[tuple[str, int], int]
    junk: dict[str, int]
    unlabelled: dict[str, int]
    distractors: int
    distractor_crops: int
    queries_without_positive: int


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """Who is seen by which camera in a split: sorted, once each.

    Attributes:
        pids: identity of a view.
        camids: its camera.
        crops: its number of crops.
    """

    pids: Int64s
    camids: Int64s
    crops: Int64s

    @classmethod
    def merge(cls, views: Iterable[tuple[Int64s, Int64s]]) -> _Views:
        """Return the views of several shards, given as `pid << 32 | camid` and crops."""
        codes, crops = (np.concatenate([np.empty(0, np.int64), *part]) for part in zip(*views, strict=True))
        found, place = np.unique(codes, return_inverse=True)
        total = np.zeros(len(found), np.int64)
        np.add.at(total, place, crops)
        return cls(found >> 32, found & 0xFFFFFFFF, total)

    @property
    def codes(self) -> Int64s:
        """`pid << 32 | camid`."""
        return self.pids << 32 | self.camids


def collect_statistics(folder: Path, manifest: Manifest, progress: Progress = no_progress) -> Statistics:
    """Return how the crops of the data set in `folder` are spread.

    Raises:
        ManifestError: a meta file, or `cameras.csv`, is not the one that the manifest lists.
    """
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    cameras: Counter[tuple[str, int]] = Counter()
    junk: Counter[str] = Counter()
    unlabelled: Counter[str] = Counter()
    views: dict[str, list[tuple[Int64s, Int64s]]] = {split: [] for split in manifest.splits}
    num_rows = 0
    cameras_listed = _check_listed(folder, manifest, CAMERAS_FILE)
    for shard in manifest.shards:
        _check_listed(folder, manifest, shard.meta_path)
        try:
            meta = pq.read_table(folder / shard.meta_path, columns=_COLUMNS, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(folder / shard.meta_path, f"cannot be read ({error})", folder) from error
        pids, camids = (meta[name].to_numpy().astype(np.int64) for name in ("pid", "camid"))
        widths.update(_count(meta["width"].to_numpy()))
        heights.update(_count(meta["height"].to_numpy()))
        cameras.update({(shard.continent, camid): number for camid, number in _count(camids).items()})
        is_person = pids >= 0
        junk[shard.split] += int((pids == JUNK_PID).sum())
        unlabelled[shard.split] += int((pids == DISTRACTOR_PID).sum())
        views[shard.split].append(np.unique((pids << 32 | camids)[is_person], return_counts=True))
        num_rows += shard.rows
        progress("counting", num_rows, manifest.num_rows)
    of_split = {split: _Views.merge(parts) for split, parts in views.items()}
    return Statistics(
        widths=widths,
        heights=heights,
        crops_per_identity={split: _crops_per_identity(one) for split, one in of_split.items()},
        cameras_per_identity=_cameras_per_identity(of_split),
        cameras_listed=cameras_listed,
        camera_columns=_camera_columns(folder / CAMERAS_FILE),
        crops_of_camera=dict(sorted(cameras.items())),
        junk=dict(+junk),
        unlabelled=dict(+unlabelled),
        **_of_test_part(of_split.get("query"), of_split.get("gallery")),
    )


def _check_listed(folder: Path, manifest: Manifest, path: str) -> int:
    """Return the rows of a file that is the one of the manifest."""
    (entry,) = (entry for entry in manifest.files if entry.path == path)
    for problem in check_file(folder, entry):
        raise ManifestError(folder / path, problem.detail, folder)
    return entry.rows


def _camera_columns(path: Path) -> tuple[str, ...]:
    with path.open(encoding="utf-8", newline="") as lines:
        return tuple(next(csv.reader(lines)))


def _count(values: npt.NDArray[np.integer]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _crops_per_identity(views: _Views) -> Histogram:
    _, place = np.unique(views.pids, return_inverse=True)
    return _count(np.bincount(place, views.crops).astype(np.int64))


def _cameras_per_identity(of_split: dict[str, _Views]) -> dict[str, Histogram]:
    parts: dict[str, list[Int64s]] = {}
    for split, views in of_split.items():
        parts.setdefault(PART_OF_SPLIT[split], []).append(views.codes)
    return {
        part: _count(np.unique(np.unique(np.concatenate(codes)) >> 32, return_counts=True)[1])
        for part, codes in parts.items()
    }


def _of_test_part(query: _Views | None, gallery: _Views | None) -> dict[str, int]:
    """Return what stands between query and gallery; nothing without both."""
    names = ("distractors", "distractor_crops", "queries_without_positive")
    if query is None or gallery is None:
        return dict.fromkeys(names, 0)
    is_distractor = ~np.isin(gallery.pids, query.pids)
    # Cameras of a query's person in the gallery, less the query's own: no one left, no right crop.
    num_cameras = np.searchsorted(gallery.pids, query.pids, "right") - np.searchsorted(gallery.pids, query.pids, "left")
    is_unscored = num_cameras - np.isin(query.codes, gallery.codes) <= 0
    values = (
        len(np.unique(gallery.pids[is_distractor])),
        int(gallery.crops[is_distractor].sum()),
        int(query.crops[is_unscored].sum()),
    )
    return dict(zip(names, values, strict=True))


# --- as text ----------------------------------------------------------------------------------------------------------


def quantile(histogram: Histogram, share: float) -> int:
    """Return the smallest value that at least `share` of all do not exceed.

    >>> quantile({10: 1, 20: 2, 90: 1}, 0.5)
    20
    """
    values = sorted(histogram)
    reached = np.cumsum([histogram[value] for value in values])
    return values[int(np.searchsorted(reached, share * reached[-1]))]


def histogram_table(histograms: Mapping[str, Histogram], value: str, *, doubling: bool = False) -> str:
    """Return a Markdown table: a row for each bin, and for each histogram its count, and a bar where it is alone.

    Args:
        histograms: heading → histogram; none is empty.
        value: what is counted, the heading of the bins.
        doubling: bins of 1, 2-3, 4-7, … instead of equal ones.

    >>> print(histogram_table({"crops": {1: 30, 2: 10, 3: 5}}, "cameras"))
    | cameras | crops | |
    |---|---|---|
    | 1 | 30 | ████████████████████ |
    | 2 | 10 | ███████ |
    | 3 | 5 | ███ |
    """
    together = sum((Counter(one) for one in histograms.values()), Counter[int]())
    is_alone = len(histograms) == 1
    bins = _doubling_bins(together) if doubling else _equal_bins(together)
    most = max(_number_in(together, *one) for one in bins)
    lines = [f"| {' | '.join([value, *histograms])} |{' |' if is_alone else ''}"]
    lines.append("|---" * (len(histograms) + 1 + is_alone) + "|")
    for low, high in bins:
        numbers = [_number_in(one, low, high) for one in histograms.values()]
        label = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        bar = f" {'█' * round(_BAR * numbers[0] / most)} |" if is_alone else ""
        lines.append(f"| {label} | {' | '.join(f'{number:,}' for number in numbers)} |{bar}")
    return "\n".join(lines)


def _number_in(histogram: Histogram, low: int, high: int) -> int:
    return sum(number for value, number in histogram.items() if low <= value <= high)


def _equal_bins(histogram: Histogram) -> list[tuple[int, int]]:
    """Return bins, both ends included, as wide as a power of two; the outer ones reach to the extremes."""
    low, high = quantile(histogram, 0.005), quantile(histogram, 0.995)
    step = 1
    while high // step - low // step >= _MOST_BINS:
        step *= 2
    return _reaching(histogram, list(range(low // step * step, high + 1, step)))


def _doubling_bins(histogram: Histogram) -> list[tuple[int, int]]:
    low, high = min(histogram).bit_length(), max(histogram).bit_length()
    return _reaching(histogram, [1 << bits - 1 for bits in range(low, high + 1)])


def _reaching(histogram: Histogram, starts: list[int]) -> list[tuple[int, int]]:
    lows = [min(histogram), *starts[1:]]
    return list(zip(lows, [*(start - 1 for start in starts[1:]), max(histogram)], strict=True))
