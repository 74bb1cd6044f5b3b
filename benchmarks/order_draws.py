"""How well an order of rows mixes people: in identity batches drawn from a pool, and in a plain shuffled stream."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import load_dataset
from order_rules import OURS, WHOLE, Rule, applied

from entire_id.records import SPLITS
from entire_id.schema import arrow_schema, shard_columns
from entire_id.shards.parquet import ParquetShard
from entire_id.shards.plan import PlannedShard, Rows, plan_shards
from entire_id.shards.records import Crops

P, K = 16, 4
UNIT_GROUPS = 4  # row groups of one shard that enter the pool together
POOLS = (8_192, 4_096, 16_384)  # the first is drawn from in every epoch, the others in one
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


# --- identity batches -------------------------------------------------------------------------------------------------


class Layout:
    """The rows of all shards, one after the other, and where row groups stop."""

    def __init__(self, shards: list[PlannedShard], pids: np.ndarray) -> None:
        self.rows = np.concatenate([shard.rows for shard in shards])
        self.pids = pids[self.rows]
        self.group_rows = np.concatenate([np.diff(shard.group_stops, prepend=0) for shard in shards])
        self.shard_groups = [len(shard.group_stops) for shard in shards]

    def units(self, rng: np.random.Generator) -> np.ndarray:
        """The unit in which each row enters the pool this epoch, (n,): row groups of a shard in fours, shuffled."""
        numbers, first = [], 0
        for num_groups in self.shard_groups:
            numbers.append(first + rng.permutation(num_groups) // UNIT_GROUPS)
            first = int(numbers[-1].max()) + 1
        return np.repeat(rng.permutation(first)[np.concatenate(numbers)], self.group_rows)


def form_groups(units: np.ndarray, layout: Layout, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Cut each person's rows of each unit, shuffled, into groups of K; the last is padded with other rows of theirs.

    Returns:
        Row numbers (g, K), people (g,), where each unit stops among the groups, and how many places are padding.
    """
    # Unit, person and chance in one integer: sorting it is several times as fast as lexsort.
    person_bits, chance_bits = int(layout.pids.max()).bit_length(), 32
    codes = (units.astype(np.uint64) << (person_bits + chance_bits)) | (layout.pids.astype(np.uint64) << chance_bits)
    order = np.argsort(codes | rng.integers(0, 1 << chance_bits, len(codes), np.uint64))
    runs = (codes >> chance_bits)[order]
    starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
    sizes = np.diff(np.append(starts, len(runs)))
    num_groups = -(-sizes // K)
    run = np.repeat(np.arange(len(starts)), num_groups)
    number = np.arange(len(run)) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
    places = starts[run][:, None] + (number[:, None] * K + np.arange(K)) % sizes[run][:, None]
    group_rows = layout.rows[order[places]]
    unit_of_group = units[order[starts]][run]
    unit_stops = np.flatnonzero(np.append(unit_of_group[1:] != unit_of_group[:-1], True)) + 1
    return group_rows, layout.pids[order[starts]][run], unit_stops, int(num_groups.sum() * K - sizes.sum())


class Pool:
    """Groups of K that wait to be drawn; a batch holds nobody twice."""

    def __init__(self, people: list[int], rng: random.Random) -> None:
        self.people = people
        self.groups: list[int] = []
        self.held: dict[int, int] = {}  # by person
        self.most = 0  # nobody holds more groups than that
        self.chance = rng.random

    def load(self, groups: range) -> None:
        for group in groups:
            person = self.people[group]
            held = self.held.get(person, 0) + 1
            self.held[person] = held
            self.most = max(self.most, held)
        self.groups.extend(groups)

    def take(self, place: int) -> int:
        groups = self.groups
        groups[place], groups[-1] = groups[-1], groups[place]
        group = groups.pop()
        person = self.people[group]
        self.held[person] -= 1
        if not self.held[person]:
            del self.held[person]
        return group

    def draw(self) -> list[int]:
        size = min(P, len(self.held))
        batch = [self.take(self._place_of(person)) for person in self._urgent()]
        chosen = {self.people[group] for group in batch}
        while len(batch) < size:
            place = int(self.chance() * len(self.groups))
            person = self.people[self.groups[place]]
            if person not in chosen:
                chosen.add(person)
                batch.append(self.take(place))
        return batch

    def _urgent(self) -> list[int]:
        """Those who must be in this batch, or the pool could not be emptied without repeating them."""
        need = -(-len(self.groups) // P)
        if self.most < need:
            return []
        self.most = max(self.held.values())
        urgent = [person for person, held in self.held.items() if held >= need]
        return sorted(urgent, key=lambda person: -self.held[person])[:P]

    def _place_of(self, person: int) -> int:
        return next(place for place, group in enumerate(self.groups) if self.people[group] == person)


def draw_epoch(people: np.ndarray, unit_stops: np.ndarray, pool_rows: int, seed: int) -> tuple[np.ndarray, int]:
    """Return the people of each batch, (b, P), -1 where a batch is short, and how many rows waited at most."""
    pool = Pool(people.tolist(), random.Random(seed))
    batches, most, loaded = [], 0, 0
    stops = iter(unit_stops.tolist())
    while True:
        while loaded < len(people) and (len(pool.groups) * K < pool_rows or len(pool.held) < P):
            stop = next(stops)
            pool.load(range(loaded, stop))
            loaded = stop
        if not pool.groups:
            break
        most = max(most, len(pool.groups) * K)
        batch = pool.draw()
        batches.append(batch + [-1] * (P - len(batch)))
    groups = np.array(batches)
    drawn = np.sort(groups[groups >= 0])
    if not np.array_equal(drawn, np.arange(len(people))):
        raise SystemExit("a group was lost or drawn twice")
    return np.where(groups >= 0, people[groups], -1), most


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


@dataclass(frozen=True)
class Mixing:
    """What one order of rows gives: pairs of people by pool and epoch, positive pairs, and what it costs."""

    people: dict[int, list[int]]
    images: int
    padding: float
    most_rows: dict[int, int]
    mean_group: float
    num_groups: int


def mix(crowd: Crowd, rows: Rows, rule: Rule | None, epochs: int) -> Mixing:
    """Draw `epochs` epochs by `rule`; with None from a pool that holds everything, which is the ideal."""
    with applied(rule or OURS):
        layout = Layout(plan_shards(rows, SHARD_ROWS, crowd.seed), rows.pid)
    pools = POOLS if rule else (1 << 40,)
    seen = {pool: Seen(len(crowd.sizes)) for pool in pools}
    people: dict[int, list[int]] = {pool: [] for pool in pools}
    most = dict.fromkeys(pools, 0)
    padded = places = 0
    for epoch in range(epochs):
        rng = np.random.default_rng([crowd.seed, epoch])
        units = layout.units(rng) if rule else np.zeros(len(layout.rows), np.int64)
        group_rows, group_people, unit_stops, padding = form_groups(units, layout, rng)
        padded, places = padded + padding, places + group_rows.size
        seen[pools[0]].add_groups(group_rows)  # the groups do not depend on the pool
        for pool in pools if epoch == 0 else pools[:1]:
            batches, waiting = draw_epoch(group_people, unit_stops, pool, epoch)
            people[pool].append(seen[pool].add_batches(batches))
            most[pool] = max(most[pool], waiting)
    images = seen[pools[0]].num_images()
    return Mixing(people, images, padded / places, most, float(layout.group_rows.mean()), len(layout.group_rows))


def compare_batches(rules: tuple[Rule, ...], epochs: int, seed: int) -> None:
    for crowd, chosen in ((train_crowd(10_799, seed), rules), (test_crowd(seed), (Rule(), Rule(chunk_rows=WHOLE)))):
        rows = crowd.rows()
        started = time.perf_counter()
        ideal = mix(crowd, rows, None, epochs)
        met = next(iter(ideal.people.values()))
        print(f"\n{crowd.name}: {len(crowd.sizes):,} people, {len(rows.pid):,} rows, {crowd.sizes.max():,} at most;")
        print(f"ideal: {met} pairs of people, {ideal.images} of images, padding {ideal.padding:.2%}")
        print(f"shares of it: people from each pool after one epoch; after {epochs}, people from {POOLS[0]:,} rows")
        print("and images from any\n")
        pools = " | ".join(f"people, {pool:,}" for pool in sorted(POOLS))
        after = f"people, {epochs} epochs | images, {epochs} epochs"
        print(f"| chunk | row groups | CDC | {pools} | {after} | padding | most rows | rows a group |")
        print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for rule in chosen:
            got = mix(crowd, rows, rule, epochs)
            cells = [f"{got.people[pool][0] / met[0]:.3f}" for pool in sorted(POOLS)]
            cells += [f"{got.people[POOLS[0]][-1] / met[-1]:.3f}", f"{got.images / ideal.images:.3f}"]
            cells += [f"{got.padding:.2%}", " / ".join(f"{got.most_rows[pool]:,}" for pool in sorted(POOLS))]
            print(f"| {rule} | {' | '.join(cells)} | {got.mean_group:.0f} |", flush=True)
        print(f"({time.perf_counter() - started:.0f} s)")


# --- plain streams ----------------------------------------------------------------------------------------------------

BUFFERS, BATCHES, STREAMED_ROWS, STREAM_SEEDS = (1_000, 10_000), (64, 256), 20_480, 3


def write_index_shard(path: Path, planned: PlannedShard, rows: Rows) -> None:
    """Write a shard with every column of the format; its images are one byte long."""
    shard = ParquetShard(path)
    fields = [field for field in arrow_schema(shard_columns()) if field.name != "image"]
    for group in planned.groups():
        texts = pa.array([str(row) for row in group.tolist()])
        known = {"pid": pa.array(rows.pid[group]), "key": texts, "xxh3": texts, "continent": texts}
        zeros = pa.array(np.zeros(len(group), np.int64))
        columns = [known.get(field.name, zeros).cast(field.type) for field in fields]
        shard.write(
            Crops([b"."] * len(group), texts.to_pylist(), pa.Table.from_arrays(columns, schema=pa.schema(fields)))
        )
    shard.close()


def write_index(crowd: Crowd, rule: Rule, folder: Path) -> list[str]:
    rows = crowd.rows()
    with applied(rule):
        shards = plan_shards(rows, SHARD_ROWS, crowd.seed)
    folder.mkdir(parents=True)
    paths = [folder / f"{planned.stem.replace('/', '-')}.parquet" for planned in shards]
    for path, planned in zip(paths, shards):
        write_index_shard(path, planned, rows)
    return [str(path) for path in paths]


def distinct_people(paths: list[str], buffer: int, seed: int) -> Iterator[float]:
    """Yield the mean number of different people in batches of each size."""
    stream = load_dataset("parquet", data_files=paths, split="train", columns=["pid"], streaming=True)
    shuffled = stream.shuffle(seed=seed, buffer_size=buffer)
    pids = [row["pid"] for row in islice(shuffled, STREAMED_ROWS)]
    for size in BATCHES:
        starts = range(0, len(pids) - size + 1, size)
        yield float(np.mean([len(set(pids[start : start + size])) for start in starts]))


def ideal_distinct(sizes: np.ndarray, batch: int) -> float:
    """Different people among `batch` rows drawn from all: the sum of their chances to be among them."""
    return float((1 - (1 - sizes / sizes.sum()) ** batch).sum())


def compare_plain(rules: tuple[Rule, ...], folder: Path, seed: int) -> None:
    crowds = ((train_crowd(1_080, seed), rules), (test_crowd(seed), (Rule(), Rule(chunk_rows=WHOLE))))
    for crowd, chosen in crowds:
        started = time.perf_counter()
        ideal = " / ".join(f"{ideal_distinct(crowd.sizes, size):.1f}" for size in BATCHES)
        print(f"\n{crowd.name}, plain stream: {len(crowd.sizes):,} people; drawn from all of them: {ideal}", end="; ")
        print(f"{STREAM_SEEDS} seeds\n")
        print(f"| chunk | row groups | CDC | shards |{'|'.join(f' shuffle({size}) ' for size in BUFFERS)}|")
        print(f"|---|---|---|---|{'---|' * len(BUFFERS)}")
        for rule in chosen:
            shutil.rmtree(folder, ignore_errors=True)
            paths = write_index(crowd, rule, folder)
            cells = []
            for buffer in BUFFERS:
                found = np.mean([list(distinct_people(paths, buffer, s)) for s in range(STREAM_SEEDS)], axis=0)
                cells.append(" / ".join(f"{value:.1f}" for value in found))
            print(f"| {rule} | {len(paths)} | {' | '.join(cells)} |", flush=True)
        print(f"({time.perf_counter() - started:.0f} s)")
