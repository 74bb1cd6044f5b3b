"""Score one set of features with one system and print what it cost: `evaluate_one.py SYSTEM FOLDER`, one line of JSON.

Features are loaded and a small product is made before the clock starts: what is measured is the evaluation.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

NAMES = ("query_features", "gallery_features", "query_pids", "gallery_pids", "query_camids", "gallery_camids")


def plain_product(arrays, rows: int):
    """The limit: the products alone, in blocks of so many rows."""
    query, gallery = arrays[:2]
    scores = np.empty((rows, len(gallery)), np.float32)
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        np.matmul(part, gallery.T, out=scores[: len(part)])
    return


def same_blocks(arrays):
    from entire_id.evaluation import features

    return plain_product(arrays, features.block_rows(len(arrays[0]), len(arrays[1]), features.SCORE_BYTES))


def large_blocks(arrays):
    return plain_product(arrays, 512)


def entire_id(kernel: str):
    def score(arrays):
        from entire_id.evaluation.ranking import evaluate

        scores = evaluate(*arrays, kernel=kernel)
        return scores.mAP, scores.rank(1)

    return score


def classic(arrays):
    """As the well-known code does it: the matrix of distances, argsort, a loop in Python over the queries."""
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = arrays
    distances = 2 - 2 * (query @ gallery.T)
    order = np.argsort(distances, axis=1)
    matches = gallery_pids[order] == query_pids[:, None]
    precisions, firsts = [], []
    for number in range(len(query)):
        listed = order[number]
        kept = (gallery_pids[listed] != query_pids[number]) | (gallery_camids[listed] != query_camids[number])
        hits = matches[number][kept]
        if hits.any():
            found = hits.cumsum() / np.arange(1, len(hits) + 1)
            precisions.append((found * hits).sum() / hits.sum())
            firsts.append(hits[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def fastreid(arrays):
    """The ranking of fast-reid, built with Cython, over the matrix of its evaluator; RANK_CYLIB is its folder."""
    sys.path.insert(0, os.environ["RANK_CYLIB"])
    import rank_cy

    query, gallery, *labels = arrays
    distances = 1 - query @ gallery.T
    cmc, precisions, _ = rank_cy.evaluate_cy(distances, *labels, 50)
    return float(np.mean(precisions, dtype=np.float64)), float(cmc[0])


def torchmetrics(arrays):
    import torch
    from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision

    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = arrays
    mean, first = RetrievalMAP(empty_target_action="skip"), RetrievalPrecision(empty_target_action="skip", top_k=1)
    for start in range(0, len(query), 256):
        stop = min(start + 256, len(query))
        scores = torch.from_numpy(query[start:stop]) @ torch.from_numpy(gallery).T + 1  # it drops scores of 0 and less
        same = torch.from_numpy(query_pids[start:stop, None] == gallery_pids)
        ignored = same & torch.from_numpy(query_camids[start:stop, None] == gallery_camids)
        rows = torch.arange(start, stop)[:, None].expand_as(scores)
        for metric in (mean, first):
            metric.update(scores[~ignored], same[~ignored], indexes=rows[~ignored])
    return float(mean.compute()), float(first.compute())


SYSTEMS = {
    "product": same_blocks,
    "product-512": large_blocks,
    "numba": entire_id("numba"),
    "numpy": entire_id("numpy"),
    "classic": classic,
    "fastreid": fastreid,
    "torchmetrics": torchmetrics,
}


def warm_up(system: str, arrays) -> None:
    """Load the libraries and let them claim their buffers."""
    small = [array[:512].copy() if number % 2 else array[:256].copy() for number, array in enumerate(arrays)]
    small[3][:] = small[2][0]  # somebody to find
    small[0] @ small[1].T
    SYSTEMS[system](small)


def main() -> None:
    system, folder = sys.argv[1], Path(sys.argv[2])
    arrays = [np.load(folder / f"{name}.npy") for name in NAMES]
    warm_up(system, arrays)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    result = SYSTEMS[system](arrays)
    cost = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "above_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024,
        "features_mb": (arrays[0].nbytes + arrays[1].nbytes) / 2**20,
        "result": result,
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
