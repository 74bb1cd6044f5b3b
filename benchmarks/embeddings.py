"""Seeded features that behave like a model's: look-alike people, cameras that shift, crops that differ in quality."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIMENSIONS = 768
_LATENT = 96  # real features fill a small part of their space
NAMES = ("query_features", "gallery_features", "query_pids", "gallery_pids", "query_camids", "gallery_camids")


@dataclass(frozen=True)
class Size:
    """How much is drawn: query crops, gallery crops, people, cameras, gallery crops of people who are no query."""

    num_query: int
    num_gallery: int
    num_pids: int
    num_camids: int
    num_distractors: int
    noise: float


SIZES = {
    "A": Size(3_368, 19_732, 750, 6, 2_798, 1.05),  # Market-1501
    "B": Size(11_659, 82_161, 3_060, 15, 0, 1.0),  # MSMT17
    "C": Size(5_000, 300_000, 2_741, 37, 0, 0.95),  # a gallery that no dense tool holds in memory
}


def make_features(size: Size, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return the six arrays that `evaluate` takes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((DIMENSIONS, _LATENT)))[0].T.astype(np.float32)
    looks = rng.standard_normal((size.num_pids // 6 + 1, _LATENT))
    num_people = size.num_pids + size.num_distractors
    people = 0.67 * looks[rng.integers(0, len(looks), num_people)] + 0.74 * rng.standard_normal((num_people, _LATENT))
    cameras = 0.35 * rng.standard_normal((size.num_camids, _LATENT))
    views = 0.55 * rng.standard_normal((num_people, 6, _LATENT))
    homes = np.stack([rng.permutation(size.num_camids)[:6] for _ in range(num_people)])
    num_views = rng.integers(2, 7, num_people)

    # Everybody is seen once in each of their cameras; the rest goes by a long-tailed popularity.
    person, view = np.nonzero(np.arange(6) < num_views[: size.num_pids, None])
    popularity = rng.lognormal(0, 0.6, size.num_pids)
    rest = size.num_gallery - size.num_distractors - len(person)
    more = rng.choice(size.num_pids, rest, p=popularity / popularity.sum())
    strangers = np.arange(size.num_pids, num_people)
    gallery_person = np.concatenate([person, more, strangers])
    gallery_view = np.concatenate([view, rng.integers(0, num_views[more]), rng.integers(0, num_views[strangers])])
    order = rng.permutation(len(gallery_person))
    gallery_person, gallery_view = gallery_person[order], gallery_view[order]
    asked = rng.permutation(len(person))[: size.num_query]
    asked = np.concatenate([asked, rng.integers(0, len(person), size.num_query - len(asked))])
    query_person, query_view = person[asked], view[asked]

    def features(persons: np.ndarray, views_of: np.ndarray) -> np.ndarray:
        result = np.empty((len(persons), DIMENSIONS), np.float32)
        for start in range(0, len(persons), 10_000):
            one, where = persons[start : start + 10_000], views_of[start : start + 10_000]
            quality = size.noise * rng.lognormal(0, 0.35, (len(one), 1))
            latent = people[one] + views[one, where] + cameras[homes[one, where]]
            latent = latent + quality * rng.standard_normal(latent.shape)
            full = 0.09 * rng.standard_normal((len(one), DIMENSIONS), dtype=np.float32)
            result[start : start + 10_000] = latent.astype(np.float32) @ basis + full
        result /= np.linalg.norm(result, axis=1, keepdims=True)
        return result

    return (
        features(query_person, query_view),
        features(gallery_person, gallery_view),
        query_person,
        gallery_person,
        homes[query_person, query_view],
        homes[gallery_person, gallery_view],
    )


def save_features(folder: Path, size: str) -> None:
    """Write the arrays of a size as .npy files, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / f"{name}.npy").exists() for name in NAMES):
        for name, array in zip(NAMES, make_features(SIZES[size])):
            np.save(folder / f"{name}.npy", array)


if __name__ == "__main__":
    save_features(Path(sys.argv[1]), sys.argv[2])
