"""Re-ranking beside the dense original: `make bench-rerank`. Both results are compared before a time counts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from entire_id.evaluation.reranking import RerankConfig, rerank

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dense_rerank import dense_rerank

COLUMNS, LATENT = 768, 96
ORIGINAL = RerankConfig.preset("original")
COSTS = ("wall_s", "neighbours_s", "cpu_s", "peak_gib")


def make(num_query: int, num_gallery: int, num_ids: int, cameras: int = 6, seed: int = 1):
    """Seeded unit features of people under cameras, and their labels: query first, then gallery."""
    rng = np.random.default_rng(seed)
    num = num_query + num_gallery
    pids, camids = rng.integers(0, num_ids, num), rng.integers(0, cameras, num)
    looks = rng.normal(size=(num_ids // 6 + 1, LATENT))[rng.integers(0, num_ids // 6 + 1, num_ids)]
    people = 0.7 * looks + 0.7 * rng.normal(size=(num_ids, LATENT))
    views = 0.6 * rng.normal(size=(num_ids, cameras, LATENT)) + 0.4 * rng.normal(size=(cameras, LATENT))
    noise = rng.lognormal(0, 0.35, (num, 1)) * rng.normal(size=(num, LATENT))
    latent = (people[pids] + views[pids, camids] + noise).astype(np.float32)
    features = latent @ np.linalg.qr(rng.normal(size=(COLUMNS, LATENT)))[0].T.astype(np.float32)
    features += 0.1 * rng.standard_normal(features.shape, np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, pids, camids


def mean_ap(blocks, num_query: int, pids, camids) -> float:
    """mAP of blocks of similarity by sorting, as Market-1501 scores."""
    precisions = []
    for first, block in blocks:
        for number, row in enumerate(block, first):
            own = (pids[num_query:] == pids[number]) & (camids[num_query:] == camids[number])
            order = np.argsort(-row[~own], kind="stable")
            ranks = np.flatnonzero((pids[num_query:] == pids[number])[~own][order]) + 1
            if len(ranks):
                precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(precisions))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(system: str, folder: Path) -> None:
    """Run one system; print its seconds, and its peak above what the process held before it saw a feature."""
    np.ones((64, 64), np.float32) @ np.ones((64, 64), np.float32)
    before = resident()
    query, gallery = (np.load(folder / f"{name}.npy") for name in ("query", "gallery"))
    told: list[tuple[str, float]] = []
    start, cpu = time.perf_counter(), time.process_time()
    if system == "dense":
        np.save(folder / "dense.npy", dense_rerank("original", query, gallery, 20, 6, 0.3, kind="quicksort"))
    else:
        for _ in rerank(query, gallery, ORIGINAL, progress=lambda stage, *_: told.append((stage, time.perf_counter()))):
            pass
    cost = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    cost["neighbours_s"] = max((at for stage, at in told if stage == "finding neighbours"), default=start) - start
    cost["peak_gib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30
    print(json.dumps(cost))


def product_seconds(folder: Path) -> float:
    """Seconds of the products alone: all features with all, in the blocks that re-ranking uses."""
    features = np.concatenate([np.load(folder / f"{name}.npy") for name in ("query", "gallery")])
    start = time.perf_counter()
    for first in range(0, len(features), 320):
        features[first : first + 320] @ features.T
    return time.perf_counter() - start


def measured(system: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(folder), "--run", system]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(folder: Path, num_query: int, pids, camids) -> None:
    """Print the largest difference to the dense distances, and what both are worth."""
    query, gallery = (np.load(folder / f"{name}.npy") for name in ("query", "gallery"))
    dense = np.load(folder / "dense.npy", mmap_mode="r")
    difference = max(
        float(np.abs(dense[first : first + len(block)] + block).max())
        for first, block in rerank(query, gallery, ORIGINAL)
    )
    scores = {
        "plain": mean_ap([(0, query @ gallery.T)], num_query, pids, camids),
        "dense": mean_ap([(0, -dense)], num_query, pids, camids),
        "entire-id": mean_ap(rerank(query, gallery, ORIGINAL), num_query, pids, camids),
    }
    print(f"\nLargest difference of a distance: {difference:.1e}. mAP:", end=" ")
    print(", ".join(f"{name} {score:.6f}" for name, score in scores.items()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--queries", type=int, default=3_368)
    parser.add_argument("--gallery", type=int, default=19_732)
    parser.add_argument("--ids", type=int, default=750)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep-dense", action="store_true", help="use the dense result of an earlier run")
    parser.add_argument("--run", choices=["dense", "entire-id"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, num_query = options.work, options.queries
    if options.run:
        run(options.run, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    features, pids, camids = make(num_query, options.gallery, options.ids)
    np.save(folder / "query.npy", features[:num_query])
    np.save(folder / "gallery.npy", features[num_query:])
    del features
    print(f"{num_query:,} queries, gallery {options.gallery:,}, {COLUMNS} columns; {os.cpu_count()} cores,", end=" ")
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}\n")
    runs, products = [], []
    for _ in range(options.rounds):
        products.append(product_seconds(folder))
        runs.append(measured("entire-id", folder))
    print("| system | wall s | of it neighbours | CPU s | peak above the interpreter, GiB |\n|---|---|---|---|---|")
    ours = [statistics.median(found[name] for found in runs) for name in COSTS]
    print("| entire-id | {:.1f} | {:.1f} | {:.1f} | {:.2f} |".format(*ours), flush=True)
    if not options.keep_dense:
        dense = measured("dense", folder)
        print(f"| dense original | {dense['wall_s']:.1f} | | {dense['cpu_s']:.1f} | {dense['peak_gib']:.2f} |")
    print(f"\nN × N products alone: {statistics.median(products):.1f} s (median of {options.rounds}, interleaved).")
    compare(folder, num_query, pids, camids)


if __name__ == "__main__":
    main()
