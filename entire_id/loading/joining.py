"""Several data sets as one, without people or cameras that collide."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import numpy as np
import numpy.typing as npt

from entire_id.errors import SelectionError
from entire_id.loading.dataset import CropDataset
from entire_id.loading.index import ShardIndex, arrow_array, concat_indexes
from entire_id.loading.integers import count_values
from entire_id.loading.selection import LabelMap

__all__ = ["join"]

_MIN_PID_STEP, _MIN_CAMID_STEP = 10**6, 10**3  # between data sets, so that numbers are the same for any split
_MAX_INT32 = np.iinfo(np.int32).max
_PEOPLE_COMPARED = 8  # of two data sets: their names of crops are read from the meta files of the shards they are in


def join(datasets: Mapping[str, CropDataset], labels: LabelMap | None = None) -> CropDataset:
    """Return one data set over all rows of several, in their order, without people or cameras that collide.

    A person is (part, pid): splits of one part of one data set share their people, `train` and `val` say. Any other
    two number anew, and so something is added to pids and camids: nothing to those of the first, then 1,000,000 and
    1,000 more for each, or the next power of ten that holds all. The same names in the same order give the same
    numbers, so that labels hold for other splits of the same parts too. Junk stays -1, distractors -2. A joined data
    set may be joined again: it shares people and cameras with those that were joined in the same way from the same.

    Two versions of a data set, or sister sets such as MSMT17 V1 and V2, are two to it, so that each of their people
    would be two classes: there is a warning where crops of the same name, person and camera are the same image or, of
    edited ones, have the same size. Not all such pairs can be told: the boxes of CUHK03 detected and labeled differ.

    Args:
        datasets: by name; `sources` tells which a row is from. All have the same transform, decode and reading.
        labels: classes that a model knows already; by default 0…n-1 over the sorted new pids.

    Raises:
        ValueError: nothing to join, or they are not read in the same way.
        SelectionError: the numbers do not fit into 32 bits, or `labels` do not know somebody.
        ManifestError: the meta file of a shard is not what the manifest says.

    Example:
        >>> both = join({name: CropDataset(name, "train") for name in ("entire-id", "my-crops")})  # doctest: +SKIP
        >>> both.source_names[both.sources[0]]  # doctest: +SKIP
        'entire-id'
    """
    joined = _JoinedDataset(datasets, labels)
    for (name, one), (other_name, other) in combinations(datasets.items(), 2):
        if one.camid_space != other.camid_space and _show_the_same(one.index, other.index):
            why = "crops of the same name, person and camera are the same images, or of the same sizes"
            cure = "Each of these people becomes two classes; leave one of the two out"
            warnings.warn(f"{name!r} and {other_name!r} look like sister sets: {why}. {cure}", RuntimeWarning, 2)
    return joined


def _show_the_same(one: ShardIndex, other: ShardIndex) -> bool:
    """Tell whether two data sets show the same people, by what a sample of them is called and looks like.

    Plain names such as `0001_c1_1` may be equal by chance, and so are sizes where all crops have one: what is equal has
    to be so for crops of one name, not for any two.
    """
    people = np.intersect1d(count_values(one.pids)[0], count_values(other.pids)[0])
    people = people[people >= 0]
    people = people[:: -(-len(people) // _PEOPLE_COMPARED) or 1]
    ours, theirs = (_images_by_name(index.take(np.isin(index.pids, people), None)) for index in (one, other))
    names = sorted(ours.keys() & theirs.keys())
    if 2 * len(names) <= min(len(ours), len(theirs)):
        return False
    images, others = (np.array([crops[name] for name in names], np.uint64) for crops in (ours, theirs))
    equal, by_chance = ((images == them).mean(axis=0) for them in (others, np.roll(others, 1, axis=0)))
    return bool((equal - by_chance > 0.5).any())


def _images_by_name(index: ShardIndex) -> dict[tuple[int, int, str], list[int]]:
    """Return checksum, width and height of each crop by its person, camera and name, whichever split it is in."""
    columns = (index.pids, index.camids, index.xxh3, index.widths, index.heights)
    rows = zip(index.keys, *(column.tolist() for column in columns), strict=True)
    return {(pid, camid, key.partition("/")[2]): image for key, pid, camid, *image in rows}


class _JoinedDataset(CropDataset):
    """What `join` returns."""

    def __init__(self, datasets: Mapping[str, CropDataset], labels: LabelMap | None) -> None:
        first = next(iter(datasets.values()), None)
        if first is None or any(_way(one) != _way(first) for one in datasets.values()):
            raise ValueError("join takes at least one data set, and all with the same transform, decode and reading")
        parts = _parts(datasets)
        pairs = list(zip(parts, datasets.values(), strict=True))
        numbering = ", ".join(f"{part.name}: ({one.label_map.numbering}) + {part.pid_offset}" for part, one in pairs)
        self.name = " + ".join(datasets)
        self.transform, self.decode, self.reading = first.transform, first.decode, first.reading
        self.pid_space = _space((one.pid_space, part.pid_offset) for part, one in pairs)
        self.camid_space = _space((one.camid_space, part.camid_offset) for part, one in pairs)
        indexes = [part.shifted(one.index) for part, one in pairs]
        index = concat_indexes(indexes, sum(map(len, indexes)), partial(_joined_index, parts))
        self._set_up(index, numbering, labels)


def _way(dataset: CropDataset) -> tuple[object, ...]:
    return dataset.transform, dataset.decode, dataset.reading


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the joined: its name, how its index is made anew, and what is added to its numbers."""

    name: str
    rebuild: Callable[[], ShardIndex] | None
    pid_offset: int
    camid_offset: int

    def shifted(self, index: ShardIndex) -> ShardIndex:
        pids = np.where(index.pids < 0, index.pids, index.pids + np.int32(self.pid_offset))
        table = index.table.set_column(index.table.column_names.index("pid"), "pid", arrow_array(pids))
        camids = arrow_array(index.camids + np.int32(self.camid_offset))
        table = table.set_column(table.column_names.index("camid"), "camid", camids)
        shards = [replace(shard, source="/".join(filter(None, (self.name, shard.source)))) for shard in index.shards]
        return ShardIndex(shards, table, index.texts)


def _parts(datasets: Mapping[str, CropDataset]) -> tuple[_Part, ...]:
    ones = list(datasets.values())
    name = " + ".join(datasets)
    pid_offsets = _offsets([one.pid_space for one in ones], [one.pids for one in ones], _MIN_PID_STEP, name)
    camid_offsets = _offsets([one.camid_space for one in ones], [one.camids for one in ones], _MIN_CAMID_STEP, name)
    return tuple(
        _Part(name, one.index.rebuild, *offsets)
        for (name, one), *offsets in zip(datasets.items(), pid_offsets, camid_offsets, strict=True)
    )


def _offsets(spaces: list[str], numbers: list[npt.NDArray[np.int32]], min_step: int, name: str) -> list[int]:
    """Return what to add to the numbers of each data set: those of one space keep theirs among themselves."""
    largest = max(int(values.max()) for values in numbers)
    step = max(min_step, 10 ** len(str(largest)))
    places = {space: place for place, space in enumerate(dict.fromkeys(spaces))}
    if (len(places) - 1) * step + largest > _MAX_INT32:
        raise SelectionError(name, f"numbers up to {largest:,} of {len(places)} data sets do not fit into 32 bits")
    return [places[space] * step for space in spaces]


def _space(parts: Iterable[tuple[str, int]]) -> str:
    """Return the space of joined numbers: the spaces they are from, and what was added to the numbers of each."""
    return ", ".join(dict.fromkeys(f"({space}) + {offset}" if offset else space for space, offset in parts))


def _joined_index(parts: tuple[_Part, ...]) -> ShardIndex:
    """Return the index of a joined data set, read anew."""
    indexes = [part.shifted(part.rebuild()) for part in parts if part.rebuild is not None]
    return concat_indexes(indexes, sum(map(len, indexes)), partial(_joined_index, parts))
