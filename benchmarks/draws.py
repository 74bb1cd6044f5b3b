"""Identity batches of crowds as large as the train part, drawn by the package from its order of rows; numbers only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from entire_id.loading.groups import cut_groups, draw_batches
from entire_id.records import SPLITS
from entire_id.shards.plan import PlannedShard, Rows

P, K = 16, 4
UNIT_GROUPS = 4  # row groups of one shard that enter the pool together
SHARD_ROWS = 22_500
CONTINENTS = ("asia", "europe", "north_america", "south_america")


@dataclass(frozen=True)
class Crowd:
    """Who has how many crops."""

    name: str
    sizes: np.ndarray
    split: str
    seed: int

    def rows(self) -> Rows:
        """The crops as `plan_shards` wants them: a person lives on one continent, keys are random."""
        rng = np.random.default_rng([self.seed, 1])
        people = np.arange(len(self.sizes))
        pid = np.repeat(people, self.sizes).astype(np.int32)
        continent = rng.integers(0, len(CONTINENTS), len(people)).astype(np.int16)[pid]
        key_hash = rng.integers(0, 2**64, len(pid), np.uint64)
        split = np.full(len(pid), SPLITS.index(self.split), np.int16)
        return Rows(split, SPLITS, continent, CONTINENTS, pid, key_hash)


def train_crowd(num_people: int, seed: int, sigma: float = 0.8) -> Crowd:
    """People with 411 crops on average and a long tail, as in the train part."""
    sizes = np.random.default_rng(seed).lognormal(0, sigma, num_people)
    return Crowd("train-like", np.maximum(2, np.round(sizes * 411 / sizes.mean())).astype(int), "train", seed)


def test_crowd(seed: int) -> Crowd:
    """The gallery of the test part: two or three crops a person, for one of three or four is the query."""
    return Crowd("test-like", np.random.default_rng(seed).integers(2, 4, 2741), "gallery", seed)


class Layout:
    """The rows of all shards, one after the other, and where row groups stop."""

    def __init__(self, shards: list[PlannedShard], pids: np.ndarray) -> None:
        self.rows = np.concatenate([shard.rows for shard in shards])
        self.pids = pids[self.rows]
        self.group_rows = np.concatenate([np.diff(shard.group_stops, prepend=0) for shard in shards])
        self.shard_groups = [len(shard.group_stops) for shard in shards]

    def units(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the places of the rows of each unit of an epoch: row groups of a shard in fours, shuffled."""
        stops = np.cumsum(self.group_rows)
        units, first = [], 0
        for num_groups in self.shard_groups:
            groups = first + rng.permutation(num_groups)
            for start in range(0, num_groups, UNIT_GROUPS):
                chosen = groups[start : start + UNIT_GROUPS]
                units.append(np.concatenate([np.arange(stops[g] - self.group_rows[g], stops[g]) for g in chosen]))
            first += num_groups
        return [units[number] for number in rng.permutation(len(units))]


@dataclass(frozen=True)
class Cut:
    """The groups of K of an epoch, unit after unit."""

    rows: np.ndarray
    people: np.ndarray
    unit_stops: np.ndarray
    num_padded: int

    def units(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.people, self.unit_stops[:-1]))


def generator(seed: int, epoch: int, *place: int) -> np.random.Generator:
    """Return the source of chance of one thing; a list of numbers alone is the same with zeros after it."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=place))


def cut_units(
    layout: Layout, units: list[np.ndarray], seed: int, epoch: int, columns: tuple[np.ndarray, ...] = ()
) -> Cut:
    """Cut every unit into groups; `columns` are cameras and sequences of all rows."""
    rows, people, num_padded = [], [], 0
    for number, places in enumerate(units):
        unit_rows = layout.rows[places]
        columns_here = (column[unit_rows] for column in columns)
        groups = cut_groups(layout.pids[places], K, generator(seed, epoch, 1, number), *columns_here)
        rows.append(unit_rows[groups.rows])
        people.append(groups.pids)
        num_padded += int(groups.num_padded.sum())
    stops = np.cumsum([len(part) for part in people])
    return Cut(np.concatenate(rows), np.concatenate(people), stops, num_padded)


def draw_groups(cut: Cut, pool_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the groups of each batch, (b, P), -1 where a batch is short, and how many rows waited at most."""
    num_loaded = most = num_drawn = 0

    def units() -> Iterator[np.ndarray]:
        nonlocal num_loaded, most
        for people in cut.units():
            num_loaded += len(people)
            most = max(most, num_loaded - num_drawn)
            yield people

    parts = []
    for batches in draw_batches(units(), P, pool_rows // K, rng):
        sizes = np.diff(batches.offsets)
        part = np.full((len(sizes), P), -1)
        part[np.arange(P) < sizes[:, None]] = batches.groups
        parts.append(part)
        num_drawn += len(batches.groups)
    groups = np.concatenate(parts)
    if not np.array_equal(np.sort(groups[groups >= 0]), np.arange(len(cut.people))):
        raise SystemExit("a group was lost or drawn twice")
    return groups, most * K


def people_of(groups: np.ndarray, people: np.ndarray) -> np.ndarray:
    return np.where(groups >= 0, people[groups], -1)


class Seen:
    """Which pairs of people have been in a batch, and which pairs of images in a group."""

    def __init__(self, num_people: int) -> None:
        self.people = np.zeros((num_people, num_people), bool)
        self.images: list[np.ndarray] = []

    def add_batches(self, people: np.ndarray) -> int:
        """Return how many pairs of people have now met."""
        for one, other in combinations(range(P), 2):
            full = (people[:, one] >= 0) & (people[:, other] >= 0)
            pair = people[full, one], people[full, other]
            self.people[np.minimum(*pair), np.maximum(*pair)] = True
        return int(self.people.sum())

    def add_groups(self, rows: np.ndarray) -> None:
        for one, other in combinations(range(K), 2):
            low, high = np.minimum(rows[:, one], rows[:, other]), np.maximum(rows[:, one], rows[:, other])
            self.images.append((low << 32 | high)[low != high])

    def num_images(self) -> int:
        return len(np.unique(np.concatenate(self.images)))
