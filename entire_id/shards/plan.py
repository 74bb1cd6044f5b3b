"""Which crop goes into which shard, and in what order: pure functions of names and numbers.

A person's crops of one split and continent lie in one shard, so that an erasure touches one shard per split and
continent. Inside a shard they are cut into chunks that a keyed hash scatters, so that one layout serves PK batches and
plain streams, and a person who comes or goes leaves every other chunk, and most row groups, as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from entire_id.records import PART_OF_SPLIT, Person

__all__ = ["CHUNK_ROWS", "Placement", "PlannedShard", "Rows", "hash_keys", "keyed_hash", "plan_shards"]

# 16 divides by the usual K of 2, 4, 8 and 16. Measured with chunks of 8 / 16 / 32 (benchmarks/RESULTS.md, "Row order"):
# .96 / .92 / .84 of a global draw's pairs of people from a pool of 8,192 rows, 121 / 92 / 65 people in a plain stream's
# batch of 256 after shuffle(1000), and 15 / 9 / 6 MB sent when a person goes.
CHUNK_ROWS = 16
_MIN_TAIL_ROWS = CHUNK_ROWS // 2
# Row groups that end by hash, 237 rows on average, stay where they are when rows before them go. With fixed ones of 256
# rows 21 MB are sent instead of 9; half or twice as large ones send about as much.
_MIN_GROUP_ROWS = 128
_MAX_GROUP_ROWS = 512
_GROUP_END_ONE_IN = 8

Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Rows:
    """The crops to place, as arrays of one length n.

    Attributes:
        split: (n,) codes into `splits`.
        splits: names that `split` indexes.
        continent: (n,) codes into `continents`.
        continents: names that `continent` indexes.
        pid: (n,) identity numbers; below 0 nobody's: junk, distractors.
        key_hash: (n,) `keyed_hash` of the keys.
    """

    split: npt.NDArray[np.int8]
    splits: tuple[str, ...]
    continent: npt.NDArray[np.int16]
    continents: tuple[str, ...]
    pid: npt.NDArray[np.int32]
    key_hash: Hashes


@dataclass(frozen=True, slots=True)
class Placement:
    """Which shard of one split and continent holds whom in the previous version.

    Attributes:
        shard_of_pid: identity → shard number.
        shard_of_nobody: `keyed_hash` of the key of a crop of nobody's (pid below 0) → shard number.
        next_number: first number that no shard had.
    """

    shard_of_pid: Mapping[int, int]
    shard_of_nobody: Mapping[int, int]
    next_number: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One file to write.

    Attributes:
        split: its split.
        continent: its continent.
        number: its place among the shards of that split and continent, from 0.
        rows: (n,) row numbers in the order in which they are written.
        group_stops: (g,) where each row group stops in `rows`, exclusive; the last is n.
    """

    split: str
    continent: str
    number: int
    rows: Indices
    group_stops: Indices

    @property
    def stem(self) -> str:
        """`<split>/<continent>-<number>`: the shard's path below data/ and meta/, without its ending."""
        return f"{self.split}/{self.continent}-{self.number:05d}"

    def groups(self) -> Iterator[Indices]:
        """The rows of each row group."""
        starts = np.concatenate([[0], self.group_stops[:-1]])
        for start, stop in zip(starts, self.group_stops, strict=True):
            yield self.rows[start:stop]


def keyed_hash(text: str, seed: int) -> int:
    """Return 64 bits that depend on `text` and `seed` alone: XXH3-64 of the UTF-8 bytes."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed)


def hash_keys(keys: list[str], seed: int) -> Hashes:
    """Return `keyed_hash` of each key, (n,) uint64."""
    return np.fromiter((xxhash.xxh3_64_intdigest(key.encode(), seed) for key in keys), np.uint64, len(keys))


def plan_shards(
    rows: Rows, shard_rows: int, seed: int, previous: Mapping[tuple[str, str], Placement] | None = None
) -> list[PlannedShard]:
    """Return the shards: people in keyed-hash order, cut greedily at `shard_rows` within split and continent.

    Args:
        rows: the crops.
        shard_rows: no shard has more rows, unless it is one person, or was filled by an earlier version.
        seed: key of all hashes.
        previous: (split, continent) → where the previous version put people. They stay there; who is new goes into new
            shards.

    Returns:
        Shards in the order of splits, continents and numbers. Every row is in exactly one.
    """
    shards = []
    for split_code, split in enumerate(rows.splits):
        in_split = rows.split == split_code
        for continent_code, continent in enumerate(rows.continents):
            members = np.flatnonzero(in_split & (rows.continent == continent_code))
            placement = (previous or {}).get((split, continent), _NOWHERE)
            units = _sort_into_units(members, rows, PART_OF_SPLIT[split], seed)
            for number, chosen in _assign(units, rows, shard_rows, placement):
                ordered, sizes = units.select(chosen)
                order, group_stops = _order_chunks(ordered, sizes, rows, PART_OF_SPLIT[split], seed)
                shards.append(PlannedShard(split, continent, number, order, group_stops))
    return shards


_NOWHERE = Placement({}, {}, 0)


@dataclass(frozen=True, slots=True)
class _Units:
    """Rows sorted so that each unit, a person or a crop of nobody's, lies together, in the order of unit hashes."""

    rows: Indices
    starts: Indices
    sizes: Indices

    def select(self, chosen: Indices) -> tuple[Indices, Indices]:
        """Return the rows of the chosen units, one after the other, and the units' sizes."""
        sizes = self.sizes[chosen]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.rows[np.repeat(self.starts[chosen], sizes) + within], sizes


def _sort_into_units(members: Indices, rows: Rows, part: str, seed: int) -> _Units:
    pid, key_hash = rows.pid[members], rows.key_hash[members]
    pids = np.unique(pid)
    person_hash = hash_keys([str(Person(part, number)) for number in pids.tolist()], seed)
    unit_hash = person_hash[np.searchsorted(pids, pid)]
    is_nobody = pid < 0
    unit_hash[is_nobody] = key_hash[is_nobody]
    order = np.lexsort((key_hash, pid, unit_hash))
    del key_hash, unit_hash  # where nobody knows the continents, all crops are one group
    members, pid = members[order], pid[order]
    changes = (pid[1:] != pid[:-1]) | (pid[1:] < 0)
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(members)), bool), changes]))
    return _Units(members, starts, np.diff(np.append(starts, len(members))))


def _assign(units: _Units, rows: Rows, shard_rows: int, placement: Placement) -> Iterator[tuple[int, Indices]]:
    """Yield (shard number, its units): those of the previous version first, then new ones, cut greedily."""
    old: dict[int, list[int]] = {}
    new: list[list[int]] = []
    filled = 0
    firsts = units.rows[units.starts]
    pids, key_hashes = rows.pid[firsts].tolist(), rows.key_hash[firsts].tolist()
    for unit, (pid, key_hash, size) in enumerate(zip(pids, key_hashes, units.sizes.tolist(), strict=True)):
        known = placement.shard_of_nobody.get(key_hash) if pid < 0 else placement.shard_of_pid.get(pid)
        if known is not None:
            old.setdefault(known, []).append(unit)
            continue
        if not new or filled + size > shard_rows:
            new.append([])
            filled = 0
        new[-1].append(unit)
        filled += size
    for number in sorted(old):
        yield number, np.array(old[number])
    for number, chosen in enumerate(new, placement.next_number):
        yield number, np.array(chosen)


def _order_chunks(members: Indices, sizes: Indices, rows: Rows, part: str, seed: int) -> tuple[Indices, Indices]:
    """Return the rows with each unit's chunks scattered by hash, and the row-group stops."""
    num_chunks = np.maximum(1, (sizes + CHUNK_ROWS - _MIN_TAIL_ROWS) // CHUNK_ROWS)
    unit_starts = np.cumsum(sizes) - sizes
    chunk_unit = np.repeat(np.arange(len(sizes)), num_chunks)
    chunk_number = np.arange(len(chunk_unit)) - np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
    starts = unit_starts[chunk_unit] + chunk_number * CHUNK_ROWS
    stops = np.append(starts[1:], len(members))
    pids = rows.pid[members[starts]]
    names = [f"{part}/{pid}/{number}" for pid, number in zip(pids.tolist(), chunk_number.tolist(), strict=True)]
    hashes = np.where(pids < 0, rows.key_hash[members[starts]], hash_keys(names, seed))
    order = np.lexsort((chunk_number, pids, hashes))
    # The order sorts by the high bits, so the low ones decide where a group ends: the same bits would end every group
    # of the first eighth and none after it.
    # A crop of nobody's is a chunk of its own, so fewer of them do.
    one_in = np.where(pids < 0, _GROUP_END_ONE_IN * CHUNK_ROWS, _GROUP_END_ONE_IN).astype(np.uint64)
    is_end = (hashes % one_in == 0)[order]
    chunk_rows = (stops - starts)[order]
    ordered = np.concatenate([members[starts[chunk] : stops[chunk]] for chunk in order.tolist()])
    return ordered, _group_stops(chunk_rows, is_end)


def _group_stops(chunk_rows: Indices, is_end: npt.NDArray[np.bool_]) -> Indices:
    stops, filled, total = [], 0, 0
    for size, ends in zip(chunk_rows.tolist(), is_end.tolist(), strict=True):
        filled += size
        total += size
        if filled >= _MAX_GROUP_ROWS or (ends and filled >= _MIN_GROUP_ROWS):
            stops.append(total)
            filled = 0
    return np.array(stops if not filled else [*stops, total], np.int64)
