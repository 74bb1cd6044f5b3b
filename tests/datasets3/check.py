"""Run by `run.py` in the environment of datasets 3.6.0: do packed folders load there as they do in 5.2?"""

from __future__ import annotations

import os
import sys
import warnings
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


def check_script(script: str) -> None:
    """The loading script on the raw crops gives the rows of the packed folder."""
    os.chdir(ROOT)
    options = {"data_dir": "crops", "trust_remote_code": True}
    for config in ("default", "test", "asia", "europe"):
        expected = rows_by_key(load("parquet", config))
        os.chdir(ROOT)
        assert rows_by_key(datasets.load_dataset(script, config, **options)) == expected
        assert rows_by_key(datasets.load_dataset(script, config, streaming=True, **options)) == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (ROOT / "crops" / "query" / "9_c21.jpg").write_bytes(b"")
        rows = datasets.load_dataset(script, split="query", **options)
    assert len(rows) == 12
    assert "1 files are left out: 1 name (first: query/9_c21.jpg)" in [str(one.message) for one in caught]
    many = datasets.load_dataset(script, data_dir="many", trust_remote_code=True, num_proc=2)
    assert {split: len(set(rows["key"])) for split, rows in many.items()} == {"query": 60, "gallery": 240}
    if REAL_CROPS:
        real = datasets.load_dataset(script, data_dir=str(REAL_CROPS), trust_remote_code=True)
        assert rows_by_key(real) == rows_by_key(load("real-parquet"))


def rows_by_key(splits: dict) -> dict[str, dict[str, dict]]:
    """Split → key → row, images undecoded."""
    raw = {split: rows.cast_column("image", datasets.Image(decode=False)) for split, rows in splits.items()}
    return {split: {row["key"]: row for row in rows} for split, rows in raw.items()}


assert datasets.__version__ == "3.6.0"
datasets.disable_progress_bars()
for name in COLUMNS:
    check_sizes(name)
    if REAL_CROPS:
        check_real(name, REAL_CROPS)
check_twins()
check_script(sys.argv[3])
also = ", real crops too" if REAL_CROPS else ""
print(f"datasets {datasets.__version__}: both formats load{also}; twins stay apart; the script reads raw crops")
