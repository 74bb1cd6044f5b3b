"""The lanes of a stream: which row groups each of them reads in an epoch, and the batches that it draws, by number.

    row groups ── draw_units ──► units ── deal_units ──► lanes ── Lane.batches ──► batches of row numbers

A lane is one reader with a pool of its own. All of it follows from seed and epoch, the manifest and the labels, so that
the batches of an epoch can be counted, or replayed up to a place, without reading a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from entire_id.loading.groups import Groups, Numbers, cut_groups, draw_batches, group_pids
from entire_id.loading.transforms import crop_generator

__all__ = ["Drawn", "EpochDraw", "Lane", "Unit", "UnitLabels", "deal_units", "draw_units", "even_pool_rows"]

_UNITS, _GROUPS, _BATCHES = range(1, 4)  # what chance is used for: each has a generator of its own


@dataclass(frozen=True, slots=True)
class Unit:
    """Row groups of one shard that enter a pool together.

    Attributes:
        shard: number of the shard.
        row_groups: numbers of its row groups, in the order drawn.
        num_rows: crops in them.
    """

    shard: int
    row_groups: tuple[int, ...]
    num_rows: int


@dataclass(frozen=True, slots=True)
class EpochDraw:
    """What the batches of an epoch follow from.

    Attributes:
        p: identities in a batch.
        k: crops of each.
        pool_rows: crops that wait in the pool of a lane, the last unit's aside.
        unit_groups: row groups of a shard that enter a pool together.
        seed: of all chance.
        epoch: number of the epoch.
    """

    p: int
    k: int
    pool_rows: int
    unit_groups: int
    seed: int
    epoch: int

    def generator(self, *purpose: int) -> np.random.Generator:
        """Return the generator for a purpose."""
        return np.random.default_rng([self.seed, self.epoch, *purpose])

    def image_generator(self, lane: int, batch: int, place: int) -> np.random.Generator:
        """Return the generator that a transform draws from, for the crop at a place of a batch of a lane."""
        return crop_generator((self.seed, self.epoch, lane, batch, place))


@dataclass(frozen=True, slots=True, eq=False)
class UnitLabels:
    """The labels of a unit's rows.

    Attributes:
        pids: (n,) identities; rows with one below 0 enter no batch.
        camids: (n,) cameras.
        seqs: (n,) sequences.
    """

    pids: npt.NDArray[np.int64]
    camids: npt.NDArray[np.int32]
    seqs: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A batch by number: groups of a unit, and their rows in it.

    Attributes:
        number: of the batch in its lane, from 0.
        units: (g,) int64 number of each group's unit in the lane.
        groups: (g,) int64 number of each group in its unit.
    """

    number: int
    units: Numbers
    groups: Numbers


def draw_units(row_groups: Sequence[Sequence[int]], draw: EpochDraw) -> list[Unit]:
    """Return the units of an epoch in the order in which they are read.

    Each shard's row groups are shuffled and cut every `unit_groups`, then all units are shuffled. A shard holds few
    people, so that the row groups of a unit bring several chunks of each, and others together in every epoch.

    Args:
        row_groups: of each shard, the rows of each of its row groups.
        draw: how many make a unit, and where the order comes from.
    """
    rng = draw.generator(_UNITS)
    units = []
    for shard, sizes in enumerate(row_groups):
        order = rng.permutation(len(sizes)).tolist()
        for start in range(0, len(order), draw.unit_groups):
            chosen = tuple(order[start : start + draw.unit_groups])
            units.append(Unit(shard, chosen, sum(sizes[group] for group in chosen)))
    return [units[number] for number in rng.permutation(len(units)).tolist()]


def deal_units(units: Sequence[Unit], num_lanes: int) -> list[list[Unit]]:
    """Return the units of each lane: one after the other goes to the lane that has the fewest rows so far.

    So the lanes have nearly the same number of rows, and none waits long for the others at the end.
    """
    lanes: list[list[Unit]] = [[] for _ in range(num_lanes)]
    rows = np.zeros(num_lanes, np.int64)
    for unit in units:
        lane = int(rows.argmin())
        lanes[lane].append(unit)
        rows[lane] += unit.num_rows
    return lanes


def even_pool_rows(draw: EpochDraw, lanes: Sequence[Sequence[Unit]]) -> int:
    """Return the rows that must wait in each pool, so that lanes can end together: `pool_rows`, or more.

    A lane has up to a unit less than another, and makes up for it by smaller batches of what waits at the end, each of
    a group at least. A unit's groups would do if all lanes had people alike; twice as many, less a batch, wait.
    """
    if len(lanes) == 1:
        return draw.pool_rows
    most = max(unit.num_rows for lane in lanes for unit in lane)
    return max(draw.pool_rows, 2 * most + draw.p * draw.k)


class Lane:
    """The batches of one lane in one epoch, by number."""

    def __init__(
        self, number: int, units: Sequence[Unit], labels: Callable[[int], UnitLabels], draw: EpochDraw
    ) -> None:
        """Note what it reads.

        Args:
            number: of the lane.
            units: its units, in the order in which they are read.
            labels: gives the labels of a unit, by its number in `units`; asked when the pool needs it.
            draw: how batches are drawn.
        """
        self.units = units
        self.waiting: dict[int, tuple[Groups, npt.NDArray[np.bool_]]] = {}
        """By unit: its groups, and which of them were not drawn yet; the batch that was yielded last still counts."""
        self._number = number
        self._labels = labels
        self._draw = draw

    def count(self) -> int:
        """Return how many batches the lane has if it need not wait for others."""
        draw = self._draw
        pids = (group_pids(self._labels(number).pids, draw.k) for number in range(len(self.units)))
        rng = draw.generator(_BATCHES, self._number)
        return sum(len(batches) for batches in draw_batches(pids, draw.p, draw.pool_rows // draw.k, rng))

    def batches(self, num_batches: Callable[[], int] | None = None) -> Iterator[Drawn]:
        """Yield the batches of the epoch.

        Args:
            num_batches: tells how many there shall be, for lanes that end together; asked when the units are used up.
        """
        draw, firsts, number = self._draw, [0], 0
        rng = draw.generator(_BATCHES, self._number)
        for batches in draw_batches(self._arriving(firsts), draw.p, draw.pool_rows // draw.k, rng, num_batches):
            starts = np.asarray(firsts)
            for groups in (batches[place] for place in range(len(batches))):
                units = np.searchsorted(starts, groups, side="right") - 1
                batch = Drawn(number, units, groups - starts[units])
                yield batch
                self._forget(batch)
                number += 1

    def _arriving(self, firsts: list[int]) -> Iterator[Numbers]:
        """Yield the identities of the groups of each unit; note where the numbers of its groups start."""
        for number in range(len(self.units)):
            rows = self._labels(number)
            rng = self._draw.generator(_GROUPS, self._number, number)
            groups = cut_groups(rows.pids, self._draw.k, rng, rows.camids, rows.seqs)
            if len(groups):
                self.waiting[number] = groups, np.ones(len(groups), np.bool_)
            firsts.append(firsts[-1] + len(groups))
            yield groups.pids

    def _forget(self, batch: Drawn) -> None:
        for unit, group in zip(batch.units.tolist(), batch.groups.tolist(), strict=True):
            waits = self.waiting[unit][1]
            waits[group] = False
            if not waits.any():
                del self.waiting[unit]
