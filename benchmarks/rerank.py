"""Re-ranking beside the dense original: `make bench-rerank`. Both results are compared before a time counts."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from entire_id.evaluation.reranking import rerank

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dense_rerank import dense_rerank

COLUMNS, LATENT = 768, 96


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


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(system: str, folder: Path, num_query: int) -> None:
    """Run one system once; print seconds and the peak above what the process held before it saw any feature."""
    np.ones((64, 64), np.float32) @ np.ones((64, 64), np.float32)
    before = rss()
    features = np.load(folder / "features.npy")
    query, gallery = features[:num_query].copy(), features[num_query:].copy()
    del features
    start = time.perf_counter()
    if system == "dense":
        distances = dense_rerank("strong-baseline-float32", query, gallery, 20, 6, 0.3, "quicksort")
    else:
        stages: dict[str, float] = {}
        for _ in rerank(query, gallery, progress=lambda stage, *_: stages.update({stage: time.perf_counter() - start})):
            pass
        print(stages, file=sys.stderr)
    wall_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if system == "dense":
        np.save(folder / "dense.npy", distances)
    print(json.dumps({"wall_s": wall_s, "peak_gib": peak / 2**30}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        f = make(3368, 19732, 750)
        Path("/tmp/rr/A").mkdir(exist_ok=True)
        np.save("/tmp/rr/A/features.npy", f[0])
        np.save("/tmp/rr/A/labels.npy", np.stack(f[1:]))
    else:
        child(sys.argv[1], Path("/tmp/rr/A"), 3368)
