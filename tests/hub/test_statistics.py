from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from entire_id.errors import ManifestError
from entire_id.hub.statistics import collect_statistics, histogram_table, quantile
from entire_id.records import PART_OF_SPLIT
from entire_id.shards.manifest import read_manifest
from entire_id.shards.verify import verify

from builders import image_bytes, pack_folder


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Crops of many sizes, with train, junk, distractors and queries that nothing answers, in shards of 9."""
    rng = np.random.default_rng(3)
    crops = tmp_path / "varied"
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (crops / split).mkdir(parents=True)
        for number in range(70):
            pid = int(rng.integers(-1, 9 if split == "query" else 14))
            camid = int(rng.choice([0, 1, 21]))
            size = int(rng.integers(10, 40)), int(rng.integers(40, 90))
            name = f"{pid if pid < 0 else f'{pid:05d}'}_c{camid:03d}s0_{number}.jpg"
            (crops / split / name).write_bytes(image_bytes(number, size))
    (crops / "query" / "00500_c000s0_1.jpg").write_bytes(image_bytes(1))
    (crops / "cameras.csv").write_text("camid,continent,scene\n0,asia,street\n21,europe,beach\n30,europe,mall\n")
    return crops


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_they_are_those_that_the_rows_give(varied: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(varied, tmp_path / "entire-id", shard_rows=9, format=format_)
    manifest = read_manifest(folder)
    found = collect_statistics(folder, manifest)
    rows = [
        {**row, "split": path.parent.name}
        for path in folder.glob("meta/*/*.parquet")
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    people = [row for row in rows if row["pid"] != -1]
    assert found.widths == Counter(row["width"] for row in rows)
    assert found.heights == Counter(row["height"] for row in rows)
    for split in manifest.splits:
        crops = Counter(row["pid"] for row in people if row["split"] == split)
        assert found.crops_per_identity[split] == Counter(crops.values())
    for part in ("train", "test"):
        views = {(row["pid"], row["camid"]) for row in people if PART_OF_SPLIT[row["split"]] == part}
        assert found.cameras_per_identity[part] == Counter(Counter(pid for pid, _ in views).values())
    assert found.crops_of_camera == Counter((row["continent"], row["camid"]) for row in rows)
    assert found.junk == Counter(row["split"] for row in rows if row["pid"] == -1)
    queried = {row["pid"] for row in people if row["split"] == "query"}
    strangers = [row["pid"] for row in people if row["split"] == "gallery" and row["pid"] not in queried]
    assert (found.distractors, found.distractor_crops) == (len(set(strangers)), len(strangers))
    assert found.queries_without_positive + found.junk["query"] == verify(folder).queries_without_positive
    assert found.queries_without_positive >= 1
    assert (found.cameras_listed, found.camera_columns) == (4, ("camid", "continent", "scene"))


def test_without_queries_there_are_neither_distractors_nor_questions(tmp_path: Path, varied: Path) -> None:
    for path in [*varied.glob("query/*"), varied / "query"]:
        path.rmdir() if path.is_dir() else path.unlink()
    folder = pack_folder(varied, tmp_path / "entire-id")
    found = collect_statistics(folder, read_manifest(folder))
    assert (found.distractors, found.distractor_crops, found.queries_without_positive) == (0, 0, 0)


@pytest.mark.parametrize("victim", ["meta/query/asia-00000.parquet", "cameras.csv"])
def test_a_file_that_is_not_the_manifests_is_not_counted(packed: Path, victim: str) -> None:
    data = (packed / victim).read_bytes()
    (packed / victim).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ManifestError, match="entire-id verify"):
        collect_statistics(packed, read_manifest(packed))


def test_progress_ends_at_all_rows(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    collect_statistics(packed, read_manifest(packed), lambda stage, done, total, note="": seen.append((done, total)))
    assert seen[-1] == (36, 36)


def test_a_quantile_is_that_of_numpy() -> None:
    values = np.random.default_rng(1).integers(0, 50, 401)
    for share in (0.01, 0.5, 0.9, 1.0):
        assert quantile(Counter(values.tolist()), share) == np.quantile(values, share, method="inverted_cdf")


@pytest.mark.parametrize("doubling", [False, True])
@pytest.mark.parametrize("high", [2, 13, 400, 70_000])
def test_the_bins_of_a_table_hold_everything_once(high: int, doubling: bool) -> None:
    values = np.random.default_rng(high).integers(1, high, 3000)
    table = histogram_table({"a": Counter(values.tolist()), "b": Counter({1: 7})}, "px", doubling=doubling)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) <= 18
    assert sum(int(a.replace(",", "")) for _, a, _ in rows) == 3000
    assert sum(int(b.replace(",", "")) for _, _, b in rows) == 7
    for label, number, _ in rows:
        low, _, last = label.replace(",", "").partition("–")
        inside = (values >= int(low)) & (values <= int(last or low))
        assert int(number.replace(",", "")) == inside.sum()


def test_one_far_value_does_not_squeeze_the_others_into_one_bin() -> None:
    table = histogram_table({"crops": Counter({60: 900, 70: 900, 80: 900, 50_000: 1})}, "px")
    assert len([line for line in table.splitlines()[2:] if "| 900 |" in line or "| 901 |" in line]) == 3
