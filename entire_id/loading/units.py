"""Units of a stream: the labels and the bytes of a few row groups, whichever thread asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from entire_id.errors import CorruptCropError
from entire_id.loading.files import Files
from entire_id.loading.index import ShardFile, read_shard_meta
from entire_id.loading.lanes import Unit, UnitLabels
from entire_id.loading.rows import check_shard, corrupt_crop, read_spans
from entire_id.loading.selection import Selection
from entire_id.records import JUNK_PID
from entire_id.shards.manifest import Manifest, Shard

__all__ = ["Crop", "UnitReader"]

_T = TypeVar("_T")

Crop = bytes | CorruptCropError
"""The bytes of a crop, or why there are none."""


class _Once(Generic[_T]):
    """What the first thread that asks makes, while others wait; all get it, or the error that came of it."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: Future[_T] = Future()

    def __call__(self) -> _T:
        with self._lock:
            if not self._made.done():
                try:
                    self._made.set_result(self._make())
                except Exception as error:  # told to all who ask
                    self._made.set_exception(error)
        return self._made.result()


@dataclass(frozen=True, slots=True, eq=False)
class _ShardRows:
    """What a stream keeps of a shard: 25 bytes a row, 33 with checksums, and no keys.

    Attributes:
        file: the shard.
        is_wanted: (n,) bool, whether the selection takes the row.
        pids: (n,) int32.
        camids: (n,) int32.
        seqs: (n,) int32.
        offsets: (n,) int64.
        lengths: (n,) int32.
        xxh3: (n,) uint64; (0,) where crops are not verified.
    """

    file: ShardFile
    is_wanted: npt.NDArray[np.bool_]
    pids: npt.NDArray[np.int32]
    camids: npt.NDArray[np.int32]
    seqs: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    xxh3: npt.NDArray[np.uint64]


class UnitReader:
    """Reads units of some shards. Meta files are read when a unit of theirs is first asked for, and kept.

    Several threads may use it, but no process that was forked meanwhile.
    """

    def __init__(
        self, files: Files, manifest: Manifest, shards: Sequence[Shard], select: Selection, *, verify: bool
    ) -> None:
        """Note what to read.

        Args:
            files: the data set.
            manifest: what it holds.
            shards: all shards of the stream, which `Unit.shard` counts.
            select: which rows are wanted.
            verify: compare every crop with its checksum; those from elsewhere always are.
        """
        self._files = files
        self._manifest = manifest
        self._shards = shards
        self._select = select
        self._verify = verify or not files.is_local
        self._first_rows = np.cumsum([0, *(shard.rows for shard in shards)])
        self._starts = [np.cumsum((0, *shard.row_groups)) for shard in shards]
        self._rows = [_Once(partial(self._read_rows, number)) for number in range(len(shards))]
        self._checks = [_Once(partial(self._check, number)) for number in range(len(shards))]

    def labels(self, unit: Unit) -> UnitLabels:
        """Return the labels of a unit's rows; the first time the meta file of its shard is read.

        Rows that are not wanted have pid -1.

        Raises:
            ManifestError: it is not what the manifest says.
            DownloadError, RepositoryNotFoundError: it cannot be fetched.
        """
        shard, rows = self._rows[unit.shard](), self.rows(unit)
        pids = np.where(shard.is_wanted[rows], shard.pids[rows], JUNK_PID)
        return UnitLabels(pids.astype(np.int64), shard.camids[rows], shard.seqs[rows])

    def each_alone(self, unit: Unit) -> UnitLabels:
        """Return `labels` in which every wanted row, junk too, is somebody of its own."""
        shard, rows = self._rows[unit.shard](), self.rows(unit)
        numbers = self._first_rows[unit.shard] + rows
        return UnitLabels(np.where(shard.is_wanted[rows], numbers, JUNK_PID), shard.camids[rows], shard.seqs[rows])

    def columns(self, unit: Unit) -> npt.NDArray[np.int64]:
        """Return pid, camid, number in the stream and number of the shard of a unit's rows, (4, n) int64."""
        shard, rows = self._rows[unit.shard](), self.rows(unit)
        numbers = self._first_rows[unit.shard] + rows
        return np.stack([shard.pids[rows], shard.camids[rows], numbers, np.full(len(rows), unit.shard)])

    def rows(self, unit: Unit) -> npt.NDArray[np.int64]:
        """Return the numbers of a unit's rows in its shard, (n,)."""
        starts = self._starts[unit.shard]
        return np.concatenate([np.arange(starts[group], starts[group + 1]) for group in unit.row_groups])

    def group_sizes(self, unit: Unit) -> list[int]:
        """Return the rows of each row group of a unit."""
        return [self._shards[unit.shard].row_groups[group] for group in unit.row_groups]

    def first_row(self, shard: int) -> int:
        """Return the number in the stream of a shard's first row."""
        return int(self._first_rows[shard])

    def read_group(self, number: int, group: int, needed: npt.NDArray[np.bool_] | None = None) -> list[Crop]:
        """Return the crops of a row group of a shard, by one request.

        Args:
            number: of the shard.
            group: number of its row group.
            needed: (n,) which of its rows are asked for; all that are wanted by default.

        Returns:
            A crop for each row, `b""` for those not asked for.

        Raises:
            ManifestError: a file is not what the manifest says.
            DownloadError, RepositoryNotFoundError: it cannot be fetched.
        """
        shard = self._rows[number]()
        first, stop = (int(row) for row in self._starts[number][group : group + 2])
        rows = first + np.flatnonzero(shard.is_wanted[first:stop] if needed is None else needed)
        crops: list[Crop] = [b""] * (stop - first)
        if len(rows):
            for row, crop in zip((rows - first).tolist(), self._read(number, rows), strict=True):
                crops[row] = crop
        return crops

    def _read(self, number: int, rows: npt.NDArray[np.int64]) -> list[Crop]:
        """Return some crops of a shard that lie close together."""
        shard = self._rows[number]()
        if not self._verify:
            self._checks[number]()
        starts = shard.offsets[rows]
        spans = list(zip(starts.tolist(), (starts + shard.lengths[rows]).tolist(), strict=True))
        found = read_spans(shard.file, spans, shard.xxh3[rows].tolist() if self._verify else None)
        if None in found:  # if it is another shard altogether, that is what to say
            self._checks[number]()
        return [
            corrupt_crop(shard.file, self.key(number, row), row, start) if crop is None else crop
            for crop, row, (start, _) in zip(found, rows.tolist(), spans, strict=True)
        ]

    def _read_rows(self, number: int) -> _ShardRows:
        index = read_shard_meta(self._files, self._manifest, self._shards[number])
        return _ShardRows(  # copies, for the arrays of an index are views of a table with more columns
            index.shards[0],
            self._select.wanted(index),
            index.pids.copy(),
            index.camids.copy(),
            index.seqs.copy(),
            index.offsets.copy(),
            index.lengths.copy(),
            index.xxh3.copy() if self._verify else np.empty(0, np.uint64),
        )

    def _check(self, number: int) -> None:
        check_shard(self._rows[number]().file)

    def key(self, number: int, row: int) -> str:
        """Return the key of a row of a shard, for a message: keys are not kept, so its meta file is read again."""
        return read_shard_meta(self._files, self._manifest, self._shards[number]).key(row)
