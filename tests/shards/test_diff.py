from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from entire_id.errors import DatasetNotFoundError, ManifestError
from entire_id.shards.diff import SplitDiff, diff_folders
from entire_id.shards.manifest import read_manifest

from builders import image_bytes, many_crops, pack_folder


@pytest.fixture(params=["parquet", "webdataset"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Version 1.0.0 of 12 people in shards of 20 crops, made from `tmp_path / "source"`."""
    source = many_crops(tmp_path / "source", people=12, shots=6)
    return pack_folder(source, tmp_path / "old", shard_rows=20, format=request.param)


def next_version(old: Path) -> Path:
    format_ = read_manifest(old).format
    options = {"shard_rows": 20, "format": format_, "version": "1.1.0", "previous": old}
    return pack_folder(old.parent / "source", old.parent / "new", **options)


def test_same_crops_change_nothing(old: Path) -> None:
    found = diff_folders(old, next_version(old))
    assert (found.old_version, found.new_version) == ("1.0.0", "1.1.0")
    assert found.shards_kept == len(read_manifest(old).shards)
    assert (found.shards_changed, found.shards_added, found.shards_removed) == (0, 0, 0)
    assert (found.people_added, found.people_removed, found.splits, found.upload_bytes) == (0, 0, {}, 0)


def test_every_change_is_counted(old: Path) -> None:
    gallery = old.parent / "source" / "bounding_box_test"
    crops = sorted(gallery.glob("00003_*.jpg"))
    crops[0].unlink()
    crops[1].write_bytes(image_bytes(4711))
    for path in old.parent.glob("source/*/00005_*.jpg"):
        path.unlink()
    (gallery / "00099_c000s0_1.jpg").write_bytes(image_bytes(4712))
    new = next_version(old)
    found = diff_folders(old, new)
    gone = [key for key in keys(old) if "/00005_" in key]
    assert (found.people_added, found.people_removed) == (1, 1)
    assert found.splits["gallery"] == SplitDiff(1, 1 + sum(key.startswith("gallery") for key in gone), 1)
    assert found.splits["query"].removed == sum(key.startswith("query") for key in gone)
    assert found.shards_added == 1
    before, after = ({entry.path: entry for entry in read_manifest(folder).files} for folder in (old, new))
    assert found.upload_bytes == sum(
        entry.bytes for path, entry in after.items() if before.get(path) is None or before[path].sha256 != entry.sha256
    )
    assert diff_folders(new, old).splits["gallery"] == SplitDiff(
        found.splits["gallery"].removed, found.splits["gallery"].added, 1
    )


def keys(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    paths = [shard.meta_path for shard in read_manifest(folder).shards]
    return [key for path in paths for key in pq.read_table(folder / path, partitioning=None)["key"].to_pylist()]


def test_damaged_and_missing_sets_are_errors(old: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError):
        diff_folders(old, tmp_path / "none")
    (old.parent / "source" / "query" / "00000_c000s0_0.jpg").write_bytes(image_bytes(4713))
    new = next_version(old)
    for shard in read_manifest(new).shards:
        path = new / shard.meta_path
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(ManifestError, match="cannot be read"):
        diff_folders(old, new)


def test_the_command(old: Path) -> None:
    (old.parent / "source" / "query" / "00000_c000s0_0.jpg").unlink(missing_ok=True)
    next(iter((old.parent / "source" / "query").glob("*.jpg"))).unlink()
    new = next_version(old)
    command = [sys.executable, "-m", "entire_id", "diff", str(old), str(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1.0.0 → 1.1.0" in done.stdout
    assert "scores of the two versions are not comparable" in done.stderr
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert told["splits"]["query"]["removed"] >= 1
