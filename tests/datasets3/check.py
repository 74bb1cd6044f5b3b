"""Run by `run.py` in the environment of datasets 3.6.0: do packed folders load there as they do in 5.2?"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import datasets

ROOT = Path(sys.argv[1])
REAL_CROPS = Path(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else None
COLUMNS = {"parquet": "image", "webdataset": "jpg"}


def stored_bytes(rows: datasets.Dataset, column: str) -> dict[str, bytes]:
    """File name → undecoded image bytes."""
    raw = rows.cast_column(column, datasets.Image(decode=False))
    names = raw["json"] if column == "jpg" else raw["image"]
    return {name["path"]: image["bytes"] for name, image in zip(names, raw[column], strict=True)}


def load(folder: str, *names: str, **options: object) -> object:
    """`load_dataset("entire-id")` in the folder that holds it."""
    os.chdir(ROOT / folder)
    return datasets.load_dataset("entire-id", *names, **options)


def check_sizes(format_: str) -> None:
    """All splits, map-style and streamed, and every config."""
    sizes = {"train": 1, "query": 12, "gallery": 24}
    assert {name: len(rows) for name, rows in load(format_).items()} == sizes
    streams = load(format_, streaming=True)
    assert {name: sum(1 for _ in rows) for name, rows in streams.items()} == sizes
    configs = ["default", "test", *(["meta"] if format_ == "parquet" else []), "asia", "europe"]
    assert datasets.get_dataset_config_names("entire-id") == configs
    assert {name: len(rows) for name, rows in load(format_, "europe").items()} == {"query": 4, "gallery": 8}
    image = load(format_, split="train")[0][COLUMNS[format_]]
    assert image.size == (24, 48), "the PNG among the JPEGs decodes"


def check_real(format_: str, crops: Path) -> None:
    """The real crops: counts, and every byte."""
    for split, folder, size in [("query", "query", 24), ("gallery", "bounding_box_test", 378)]:
        rows = load(f"real-{format_}", split=split)
        assert len(rows) == size
        found = stored_bytes(rows, COLUMNS[format_])
        assert found == {path.name: path.read_bytes() for path in (crops / folder).iterdir()}
        assert sum(1 for _ in load(f"real-{format_}", split=split, streaming=True)) == size


def check_twins() -> None:
    """Same version, counts and sizes, one byte apart, one cache: each loads its own rows."""
    for twin in "ab":
        found = stored_bytes(load(f"twin-{twin}", split="query"), "image")
        assert found["00000_c000s0_760487.jpg"][-1:] == twin.encode()


assert datasets.__version__ == "3.6.0"
datasets.disable_progress_bars()
for name in COLUMNS:
    check_sizes(name)
    if REAL_CROPS:
        check_real(name, REAL_CROPS)
check_twins()
print(f"datasets {datasets.__version__}: both formats load{', real crops too' if REAL_CROPS else ''}; twins stay apart")
