"""What the tests build their data sets from."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source


def image_bytes(seed: int = 0, size: tuple[int, int] = (24, 48), kind: str = "JPEG") -> bytes:
    """Return a small picture that no other seed gives."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.integers(0, 256, 3) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def write_crops(folder: Path, names: list[str], first_seed: int = 0) -> Path:
    """Write a picture for each of the relative `names`, PNG where the name says so."""
    for number, name in enumerate(names, first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, kind="PNG" if name.endswith(".png") else "JPEG"))
    return folder


def crop_names(people: int = 4, cameras: tuple[int, ...] = (0, 1, 21), shots: int = 3) -> list[str]:
    """Return official names of a test part: each person under each camera, the first shot as query."""
    names = []
    for pid in range(people):
        for camid in cameras:
            for shot in range(shots):
                folder = "query" if shot == 0 else "bounding_box_test"
                names.append(f"{folder}/{pid:05d}_c{camid:03d}s0_{760487 + 3 * shot}.jpg")
    return names


CAMERAS = "camid,continent,scene\n0,asia,street\n1,asia,mall\n21,europe,beach\n"


def pack_folder(source: Path, out: Path, **options: object) -> Path:
    """Pack and return `out`."""
    pack(open_source(source), out, PackConfig(**{"name": "entire-id"} | options))
    return out


def write_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write an archive of `entries` and return `path`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def packed_images(out: Path) -> dict[str, bytes]:
    """Return key → image bytes of a packed data set, read where `meta` says they lie."""
    images = {}
    for meta in sorted(out.glob("meta/*/*.parquet")):
        for row in pq.read_table(meta, partitioning=None).to_pylist():
            with (out / row["shard"]).open("rb") as shard:
                shard.seek(row["offset"])
                images[row["key"]] = shard.read(row["length"])
    return images


def rejected_rows(out: Path) -> list[dict[str, str]]:
    """Return the lines of `OUT.rejected.csv`: path, reason, detail; none where there is no such file."""
    path = out.with_name(out.name + ".rejected.csv")
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
