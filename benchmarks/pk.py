"""How well identity batches from a bounded pool mix people, beside those drawn from all rows: `make bench-pk`."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from draws import SHARD_ROWS, Crowd, K, Layout, P, Seen, cut_units, draw_groups, generator, people_of, train_crowd

from entire_id import PKSampler
from entire_id.loading.groups import draw_batches, group_pids
from entire_id.shards.plan import Rows, plan_shards

SYSTEMS = ((4_096, 1), (8_192, 1), (16_384, 1), (8_192, 4), (8_192, 16))  # rows in a pool, and pools side by side
NUM_CAMERAS, MOST_CAMERAS, SEQUENCE_ROWS = 37, 5, 40
WINDOW = 100  # batches


@dataclass
class Tally:
    """What the batches of some epochs have shown."""

    seen: Seen
    shown: np.ndarray  # rows of the last epoch
    people: list[int]  # pairs who have met, after each epoch
    padding: float = 0.0
    short: int = 0
    cameras: float = 0.0
    group_cameras: float = 0.0
    window: float = 0.0
    most_rows: int = 0

    def add(self, rows: np.ndarray, groups: np.ndarray, pids: np.ndarray, camids: np.ndarray) -> None:
        """Add an epoch: rows of each group, (g, K), and groups of each batch, (b, P), -1 where one is short."""
        self.seen.add_groups(rows)
        people = people_of(groups, pids[rows[:, 0]])
        self.people.append(self.seen.add_batches(people))
        self.shown = np.bincount(rows.ravel(), minlength=len(pids))
        self.padding = 1 - np.count_nonzero(self.shown) / rows.size
        self.short = int((groups < 0).any(1).sum())
        full = groups[(groups >= 0).all(1)]
        self.cameras = distinct(camids[rows[full]].reshape(len(full), -1))
        self.group_cameras = distinct(camids[rows])
        windows = people[: len(people) // WINDOW * WINDOW].reshape(-1, WINDOW * P)
        self.window = distinct(windows) if len(windows) else float("nan")


def distinct(values: np.ndarray) -> float:
    """Return the mean number of different values in a row."""
    ordered = np.sort(values, axis=1)
    return float(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1).mean())


def places(crowd: Crowd, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the camera and sequence of every row: forty crops a sequence, one to five cameras a person, assumed."""
    rng = np.random.default_rng([crowd.seed, 2])
    first = np.cumsum(crowd.sizes) - crowd.sizes
    seqs = (np.arange(len(rows.pid)) - first[rows.pid]) // SEQUENCE_ROWS
    cameras = rng.random((len(crowd.sizes), NUM_CAMERAS)).argsort(1)[:, :MOST_CAMERAS]
    number = rng.integers(1, MOST_CAMERAS + 1, len(crowd.sizes))
    of_sequence = rng.integers(0, 1 << 30, (len(crowd.sizes), int(seqs.max()) + 1)) % number[:, None]
    return cameras[rows.pid, of_sequence[rows.pid, seqs]], seqs


def draw_ideal(sampler: PKSampler, epoch: int, tally: Tally, pids: np.ndarray, camids: np.ndarray) -> None:
    """Take the batches as a loader does."""
    sampler.set_epoch(epoch)
    batches = list(sampler)
    sizes = np.array([len(rows) for rows in batches]) // K
    rows = np.concatenate([np.array(batch) for batch in batches]).reshape(-1, K)
    groups = np.full((len(batches), P), -1)
    groups[np.arange(P) < sizes[:, None]] = np.arange(len(rows))
    tally.add(rows, groups, pids, camids)


def draw_lanes(
    layout: Layout, columns: tuple[np.ndarray, np.ndarray], system: tuple[int, int], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the groups of K and those of each batch of all lanes, step after step, and the rows that waited."""
    pool_rows, num_lanes = system
    units = layout.units(generator(seed, epoch, 0))
    all_rows, all_groups, most, num_groups = [], [], 0, 0
    for lane in range(num_lanes):
        cut = cut_units(layout, units[lane::num_lanes], seed, epoch, columns)
        groups, waiting = draw_groups(cut, pool_rows, generator(seed, epoch, 2, lane))
        all_groups.append(np.where(groups >= 0, groups + num_groups, -1))
        all_rows.append(cut.rows)
        num_groups, most = num_groups + len(cut.rows), max(most, waiting)
    steps = np.concatenate([np.arange(len(groups)) for groups in all_groups])
    return np.concatenate(all_rows), np.concatenate(all_groups)[np.argsort(steps, kind="stable")], most


def show(name: str, tally: Tally, ideal: Tally) -> None:
    pairs = [f"{met / best:.3f}" for met, best in zip(tally.people, ideal.people, strict=True)]
    cells = [pairs[0], pairs[-1], f"{tally.seen.num_images() / ideal.seen.num_images():.3f}"]
    cells += [f"{np.count_nonzero(tally.shown) / len(tally.shown):.4f}", f"{tally.padding:.2%}", f"{tally.short}"]
    cells += [f"{tally.window:.0f}", f"{tally.cameras:.2f}", f"{tally.group_cameras:.2f}", f"{tally.most_rows:,}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare_draws(crowd: Crowd, epochs: int) -> None:
    rows = crowd.rows()
    columns = places(crowd, rows)
    layout = Layout(plan_shards(rows, SHARD_ROWS, crowd.seed), rows.pid)
    print(f"\n{len(crowd.sizes):,} people, {len(rows.pid):,} rows, {crowd.sizes.max():,} at most; P {P}, K {K}")
    head = f"people, 1 epoch | people, {epochs} | images, {epochs} | coverage | padding | short batches"
    print(f"| drawn from | {head} | people in {WINDOW} batches | cameras a batch | a group | rows that wait |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    ideal = Tally(Seen(len(crowd.sizes)), np.empty(0), [])
    sampler = PKSampler(rows.pid, P, K, camids=columns[0], seqs=columns[1], seed=crowd.seed, rank=0, world_size=1)
    for epoch in range(epochs):
        draw_ideal(sampler, epoch, ideal, rows.pid, columns[0])
    show("all rows (`PKSampler`)", ideal, ideal)
    for system in SYSTEMS:
        tally = Tally(Seen(len(crowd.sizes)), np.empty(0), [])
        for epoch in range(epochs):
            group_rows, groups, tally.most_rows = draw_lanes(layout, columns, system, crowd.seed, epoch)
            tally.add(group_rows, groups, rows.pid, columns[0])
        show(f"{system[0]:,} rows" + f" × {system[1]}" * (system[1] > 1), tally, ideal)


def time_draws(crowd: Crowd) -> None:
    """Print what the batches cost without any pixels."""
    rows = crowd.rows()
    columns = dict(zip(("camids", "seqs"), places(crowd, rows)))
    for name, given in (("pids alone", {}), ("cameras and sequences", columns)):
        started = time.perf_counter()
        sampler = PKSampler(rows.pid, P, K, seed=crowd.seed, rank=0, world_size=1, **given)
        made = time.perf_counter()
        batches = iter(sampler)
        next(batches)
        first = time.perf_counter()
        num_others = sum(1 for _ in batches)
        rest = (time.perf_counter() - first) / num_others
        print(f"PKSampler, {name}: made in {made - started:.2f} s, first batch {first - made:.2f} s later,", end=" ")
        print(f"then {rest * 1e6:.1f} µs a batch, {len(sampler):,} batches")
    layout = Layout(plan_shards(rows, SHARD_ROWS, crowd.seed), rows.pid)
    units = layout.units(generator(crowd.seed, 0, 0))
    started = time.perf_counter()
    groups = (group_pids(layout.pids[unit], K) for unit in units)
    num_batches = sum(len(part) for part in draw_batches(groups, P, 8_192 // K, generator(crowd.seed, 0, 2)))
    took = time.perf_counter() - started
    print(f"a stream's epoch replayed by number, pool of 8,192 rows: {took:.2f} s, {num_batches:,} batches", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=10_799)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}")
    crowd = train_crowd(options.people, options.seed)
    time_draws(crowd)
    compare_draws(crowd, options.epochs)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
