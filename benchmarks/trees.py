"""Trees of crops of any size for the benchmarks: real JPEG files with official names, no two alike."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from entire_id.sources.sample import SampleConfig, draw_sample

# The published totals; how many crops a person has is not published.
TOTAL_CROPS, TRAIN_PEOPLE, TEST_PEOPLE, CAMERAS = 4_450_000, 10_799, 2_741, 37
CONTINENTS = ("asia", "europe", "north_america", "south_america")
TEST_CROPS = 4
_COMMENT = b"\xff\xfe"  # JPEG marker of a comment: makes each file its own, and of a given size


def make_tree(
    folder: Path,
    num_files: int,
    mean_bytes: int = 7_900,
    seed: int = 0,
    grain: float | None = None,
    people: int | None = None,
) -> int:
    """Write `num_files` crops with the published proportions of people and return their bytes.

    A person has a long-tailed number of crops in train (lognormal, sigma 0.8, about 411 on average) and 4 in test. A
    crop is one of 2,000 drawn ones with a comment of random bytes, so that sizes spread around `mean_bytes`.
    With `grain` (standard deviation of a noise, in levels) the pictures themselves are as large as photographs are,
    so that decoding costs what it does there. With `people` the train part has that many, whatever the proportions: of
    a few thousand crops it would have so few that no batch of identities could be filled to the end of an epoch.
    """
    with tempfile.TemporaryDirectory() as drawn:
        draw_sample(Path(drawn) / "crops", SampleConfig.of_size(2000, seed))
        pictures = [path.read_bytes() for path in sorted((Path(drawn) / "crops").glob("*/*.jpg"))]
    rng = np.random.default_rng(seed)
    if grain is not None:
        pictures = [grained(picture, grain, rng) for picture in pictures]
    noise = rng.bytes(1 << 22)
    mean_picture = int(np.mean([len(picture) for picture in pictures]))
    if mean_bytes <= mean_picture:
        raise SystemExit(f"drawn crops have {mean_picture} bytes on average; ask for more than that")
    spare = mean_bytes - mean_picture
    sizes = np.minimum(rng.integers(max(1, spare // 2), max(2, 3 * spare // 2), num_files), 65_000)
    starts = rng.integers(0, len(noise) - 65_536, num_files)
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / name).mkdir(parents=True)
    num_bytes = 0
    for number, (path, size, start) in enumerate(zip(names(num_files, rng, people), sizes.tolist(), starts.tolist())):
        picture = pictures[number % len(pictures)]
        comment = _COMMENT + (size + 2).to_bytes(2, "big") + noise[start : start + size]
        descriptor = os.open(f"{folder}/{path}", os.O_CREAT | os.O_WRONLY)
        num_bytes += os.write(descriptor, picture[:2] + comment + picture[2:])
        os.close(descriptor)
    lines = (f"{camid},{CONTINENTS[camid % 4]}" for camid in range(CAMERAS))
    (folder / "cameras.csv").write_text("\n".join(["camid,continent", *lines]) + "\n")
    return num_bytes


def grained(picture: bytes, grain: float, rng: np.random.Generator) -> bytes:
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    noisy = np.clip(pixels + rng.normal(0, grain, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=95)
    return file.getvalue()


def names(num_files: int, rng: np.random.Generator, people: int | None = None) -> Iterator[str]:
    """Yield official names."""
    num_test = max(1, round(TEST_PEOPLE * num_files / TOTAL_CROPS))
    num_train = people or max(1, round(TRAIN_PEOPLE * num_files / TOTAL_CROPS))
    weights = rng.lognormal(0, 0.8, num_train)
    edges = np.round(np.cumsum(weights) / weights.sum() * (num_files - TEST_CROPS * num_test)).astype(int)
    counts = [*np.diff(edges, prepend=0).tolist(), *[TEST_CROPS] * num_test]
    for pid, count in enumerate(counts):
        cameras = rng.integers(0, CAMERAS, 3).tolist()
        for shot in range(count):
            folder = "bounding_box_train" if pid < num_train else "query" if shot == 0 else "bounding_box_test"
            number = pid if pid < num_train else pid - num_train  # either part counts from 0
            yield f"{folder}/{number:05d}_c{cameras[shot % 3]:03d}s{shot // 40}_{shot * 3}.jpg"


if __name__ == "__main__":
    make_tree(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))
