"""Trees of crops of any size for the benchmarks: real JPEG files with official names, no two alike."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from entire_id.sources.sample import SampleConfig, draw_sample

CONTINENTS = ("asia", "europe", "north_america", "south_america")
_COMMENT = b"\xff\xfe"  # JPEG marker of a comment: makes each file its own, and of a given size


def make_tree(folder: Path, num_files: int, mean_bytes: int = 7_900, seed: int = 0) -> None:
    """Write `num_files` crops: identities with long-tailed numbers of crops, 37 cameras, nine tenths in the train part.

    A crop is one of 2,000 drawn ones with a comment of random bytes, so that sizes spread around `mean_bytes`.
    """
    with tempfile.TemporaryDirectory() as drawn:
        draw_sample(Path(drawn) / "crops", SampleConfig.of_size(2000, seed))
        pictures = [path.read_bytes() for path in sorted((Path(drawn) / "crops").glob("*/*.jpg"))]
    rng = np.random.default_rng(seed)
    noise = rng.bytes(1 << 22)
    spare = mean_bytes - int(np.mean([len(picture) for picture in pictures]))
    sizes = rng.integers(max(1, spare // 2), max(2, 3 * spare // 2), num_files)
    starts = rng.integers(0, len(noise) - 65_536, num_files)
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(_names(num_files, rng)):
        picture = pictures[number % len(pictures)]
        size, start = min(int(sizes[number]), 65_000), int(starts[number])
        comment = _COMMENT + (size + 2).to_bytes(2, "big") + noise[start : start + size]
        descriptor = os.open(folder / path, os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, picture[:2] + comment + picture[2:])
        os.close(descriptor)
    lines = (f"{camid},{CONTINENTS[camid % 4]}" for camid in range(37))
    (folder / "cameras.csv").write_text("\n".join(["camid,continent", *lines]) + "\n")


def _names(num_files: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield official names: people with about 411 crops in train, 4 in test."""
    left, pid = num_files, 0
    while left:
        in_train = rng.random() < 0.8
        count = min(left, int(rng.lognormal(5.7, 0.8)) + 1 if in_train else 4)
        cameras = rng.integers(0, 37, 3)
        for shot in range(count):
            folder = "bounding_box_train" if in_train else "query" if shot == 0 else "bounding_box_test"
            yield f"{folder}/{pid:05d}_c{cameras[shot % 3]:03d}s{shot // 40}_{shot * 3}.jpg"
        left, pid = left - count, pid + 1


if __name__ == "__main__":
    make_tree(Path(sys.argv[1]), int(sys.argv[2]))
