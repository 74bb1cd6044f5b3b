"""The crops that wait in the pools of a stream: read when their unit comes up, gone when their group is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from entire_id.loading.groups import Groups
from entire_id.loading.lanes import Drawn, EpochDraw, Lane, Unit, UnitLabels
from entire_id.loading.units import Crop, UnitReader

__all__ = ["Batch", "Epoch"]

_THREADS = 8  # row groups that come at once; a process for each worker multiplies them


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch before its images are decoded; its crops are those of one group after the other.

    Attributes:
        lane: its lane.
        number: of the batch in its lane.
        crops: B crops.
        columns: (4, B) int64: pid, camid, number of the row in the split, number of the shard.
        is_padded: (B,) bool, whether the crop only fills up its group.
    """

    lane: int
    number: int
    crops: list[Crop]
    columns: npt.NDArray[np.int64]
    is_padded: npt.NDArray[np.bool_]


class Epoch:
    """All lanes of an epoch, some of which this process reads. `close` ends its threads."""

    def __init__(
        self,
        draw: EpochDraw,
        units: Sequence[Sequence[Unit]],
        reader: UnitReader,
        prefetch_units: int,
        *,
        uniform: bool,
    ) -> None:
        """Note what is drawn, and from where.

        Args:
            draw: how batches are drawn.
            units: of each lane.
            reader: reads units.
            prefetch_units: units that a lane begins to read before they are needed.
            uniform: draw every crop as if it were somebody of its own.
        """
        self.draw = draw
        self.units = units
        self.reader = reader
        self.prefetch_units = prefetch_units
        self.labels = reader.each_alone if uniform else reader.labels
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="entire-id-stream")

    @cached_property
    def num_batches(self) -> int:
        """Batches that each lane has: as many as the longest one needs, so that all end together."""
        for unit in {unit.shard: unit for units in self.units for unit in units}.values():
            self.announce(unit)
        lanes = (
            Lane(number, units, partial(self._labels_of, units), self.draw) for number, units in enumerate(self.units)
        )
        return max(lane.count() for lane in lanes)

    def _labels_of(self, units: Sequence[Unit], number: int) -> UnitLabels:
        return self.labels(units[number])

    def announce(self, unit: Unit) -> None:
        """Begin to read what `labels` will be asked for; should that fail, `labels` says so."""
        self._threads.submit(self.labels, unit)

    def fetch(self, unit: Unit, needed: npt.NDArray[np.bool_] | None = None) -> list[Future[list[Crop]]]:
        """Begin to read the crops of a unit, row group by row group; see `UnitReader.read_group`.

        Args:
            unit: the unit.
            needed: (n,) which of its rows are asked for; all that are wanted by default.
        """
        masks: Sequence[npt.NDArray[np.bool_] | None] = [None] * len(unit.row_groups)
        if needed is not None:
            masks = np.split(needed, np.cumsum(self.reader.group_sizes(unit))[:-1])
        groups = zip(unit.row_groups, masks, strict=True)
        return [self._threads.submit(self.reader.read_group, unit.shard, *group) for group in groups]

    def close(self) -> None:
        """Forget what was begun. A request under way is not waited for: one that is repeated may take minutes."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def batches(self, lane: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of a lane, but for the first `skip`; of these no crop is read that no other batch needs."""
        return _LaneReader(self, lane, skip).batches()


class _Arrived:
    """A unit whose crops have come; each waits until its group is drawn."""

    def __init__(
        self, columns: npt.NDArray[np.int64], groups: Groups, waits: npt.NDArray[np.bool_], crops: list[Crop]
    ) -> None:
        self.columns = columns
        self.groups = groups
        # The crops of a group, and nothing that holds them all: memory is given back group by group.
        self.crops = {
            group: [crops[row] for row in groups.rows[group].tolist()] for group in np.flatnonzero(waits).tolist()
        }


class _LaneReader:
    def __init__(self, epoch: Epoch, number: int, skip: int) -> None:
        self._epoch = epoch
        self._number = number
        self._skip = skip
        self._is_reading = skip == 0
        self._lane = Lane(number, epoch.units[number], self._labels, epoch.draw)
        self._coming: dict[int, list[Future[list[Crop]]]] = {}
        self._entered = 0  # units whose labels were asked for
        self._begun = 0  # units that are announced or fetched
        self._arrived: dict[int, _Arrived] = {}

    def batches(self) -> Iterator[Batch]:
        epoch = self._epoch
        num_batches = (lambda: epoch.num_batches) if len(epoch.units) > 1 else None
        for drawn in self._lane.batches(num_batches):
            if drawn.number < self._skip:
                continue
            if not self._is_reading:
                self._begin_reading()
            yield self._taken(drawn)

    def _labels(self, number: int) -> UnitLabels:
        """Return the labels of a unit, and see that it and the next ones are under way."""
        units = self._lane.units
        ahead = range(self._begun, min(number + 1 + self._epoch.prefetch_units, len(units)))
        for coming in ahead:
            if self._is_reading:
                self._coming[coming] = self._epoch.fetch(units[coming])
            else:
                self._epoch.announce(units[coming])
        self._begun = max(self._begun, ahead.stop)
        self._entered = number + 1
        labels = self._epoch.labels(units[number])
        if (labels.pids < 0).all():  # nothing of it will be drawn
            self._coming.pop(number, None)
        return labels

    def _begin_reading(self) -> None:
        """Fetch, all at once, the crops that wait in the pool after the batches left out, and the next units."""
        self._is_reading = True
        units = self._lane.units
        for number, (groups, waits) in self._lane.waiting.items():
            needed = np.zeros(units[number].num_rows, np.bool_)
            needed[groups.rows[waits]] = True
            self._coming[number] = self._epoch.fetch(units[number], needed)
        for number in range(self._entered, self._begun):
            self._coming[number] = self._epoch.fetch(units[number])

    def _taken(self, drawn: Drawn) -> Batch:
        crops: list[Crop] = []
        rows, num_padded = [], []
        for number, group in zip(drawn.units.tolist(), drawn.groups.tolist(), strict=True):
            arrived = self._arrive(number)
            crops += arrived.crops.pop(group)
            rows.append(arrived.columns[:, arrived.groups.rows[group]])
            num_padded.append(arrived.groups.num_padded[group])
            if not arrived.crops:
                del self._arrived[number]
        k = self._epoch.draw.k
        is_padded = np.arange(k) >= k - np.array(num_padded)[:, None]
        return Batch(self._number, drawn.number, crops, np.concatenate(rows, axis=1), is_padded.ravel())

    def _arrive(self, number: int) -> _Arrived:
        if number not in self._arrived:
            crops = [crop for group in self._coming.pop(number) for crop in group.result()]
            columns = self._epoch.reader.columns(self._lane.units[number])
            self._arrived[number] = _Arrived(columns, *self._lane.waiting[number], crops)
        return self._arrived[number]
