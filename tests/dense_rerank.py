"""k-reciprocal re-ranking with N × N matrices, as it was published: what the sparse one is compared with."""

from __future__ import annotations

import numpy as np


def squared_euclidean(features: np.ndarray) -> np.ndarray:
    padded = np.pad(features, ((0, -len(features) % 64), (0, 0)))  # rows at an odd end break ties
    products = (padded @ padded.T)[: len(features), : len(features)]
    squares = (features * features).sum(1)
    return np.maximum(squares[:, None] + squares - 2 * products, 0)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def divided(distances: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Each row by its maximum; all 0 where that is only `noise`, which published code makes NaN or noise."""
    highest = distances.max(0)
    return (distances / np.where(highest > noise, highest, np.inf)).T.astype(np.float32)


def reciprocal(ranking: np.ndarray, row: int, k: int) -> np.ndarray:
    """The first k + 1 in the ranking of `row` that have `row` among their own first k + 1."""
    forward = ranking[row, : k + 1]
    return forward[(ranking[forward, : k + 1] == row).any(1)]


def mixed(
    distances: np.ndarray,
    ranking: np.ndarray,
    own: np.ndarray,
    num_query: int,
    *,
    k1: int,
    k2: int,
    share: float,
    dtype: type = np.float32,
) -> np.ndarray:
    """(q, g) distances: `share` of `own`, the rest Jaccard, from (N, N) distances and rankings of all rows."""
    num = len(distances)
    sets = np.zeros((num, num), dtype)
    for row in range(num):
        first = grown = reciprocal(ranking, row, k1)
        for candidate in first:
            theirs = reciprocal(ranking, candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(theirs, first)) > 2 / 3 * len(theirs):
                grown = np.append(grown, theirs)
        grown = np.unique(grown)
        weights = np.exp(-distances[row, grown])
        sets[row, grown] = weights / weights.sum()
    if k2 != 1:
        sets = np.stack([sets[ranking[row, :k2]].mean(0) for row in range(num)])
    holders = [np.flatnonzero(column) for column in np.ascontiguousarray(sets.T)]
    jaccard = np.empty((num_query, num), dtype)
    for row in range(num_query):
        common = np.zeros(num, dtype)
        for member in np.flatnonzero(sets[row]):
            common[holders[member]] += np.minimum(sets[row, member], sets[holders[member], member])
        jaccard[row] = 1 - common / (2 - common)
    return jaccard[:, num_query:] * (1 - share) + own[:num_query, num_query:] * share


def dense_rerank(
    preset: str, query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, share: float, kind: str = "stable"
) -> np.ndarray:
    """(q, g) distances by the rules of `preset`, which are written out here a second time."""
    features = np.concatenate([query, gallery]).astype(np.float32)
    if preset in ("strong-baseline", "transreid", "fast-reid"):
        features = unit(features)
    squares = squared_euclidean(features)
    if preset == "fast-reid":  # k1 neighbours with the row itself; no maximum; 1 - cosine is mixed in
        ranking = np.argsort(squares, kind=kind)[:, :k1].astype(np.int32)
        return mixed(squares, ranking, 1 - features @ features.T, len(query), k1=k1, k2=k2, share=share)
    noise = 1e-6 * (features * features).sum(1)
    distances = divided(squares**2, noise**2) if preset == "torchreid" else divided(squares, noise)
    ranking = np.argsort(distances, kind=kind).astype(np.int32)
    dtype = np.float16 if preset in ("strong-baseline", "transreid") else np.float32
    return mixed(distances, ranking, distances, len(query), k1=k1, k2=k2, share=share, dtype=dtype)
