"""How well an order of rows mixes people: in identity batches drawn from a pool, and in a plain shuffled stream."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import load_dataset
from draws import SHARD_ROWS, Crowd, Layout, Seen, cut_units, draw_groups, generator, people_of, test_crowd, train_crowd
from order_rules import OURS, WHOLE, Rule, applied

from entire_id.schema import arrow_schema, shard_columns
from entire_id.shards.parquet import ParquetShard
from entire_id.shards.plan import PlannedShard, Rows, plan_shards
from entire_id.shards.records import Crops

POOLS = (8_192, 4_096, 16_384)  # the first is drawn from in every epoch, the others in one

# --- identity batches -------------------------------------------------------------------------------------------------


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
        units = layout.units(generator(crowd.seed, epoch, 0)) if rule else [np.arange(len(layout.rows))]
        cut = cut_units(layout, units, crowd.seed, epoch)
        padded, places = padded + cut.num_padded, places + cut.rows.size
        seen[pools[0]].add_groups(cut.rows)  # the groups do not depend on the pool
        for pool in pools if epoch == 0 else pools[:1]:
            groups, waiting = draw_groups(cut, pool, generator(crowd.seed, epoch, 2))
            people[pool].append(seen[pool].add_batches(people_of(groups, cut.people)))
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
