"""Where an older version may still lie on this machine: real caches of `datasets`, and the layout of the Hub's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import datasets
import pytest

from entire_id.shards.caches import caches_of
from entire_id.shards.manifest import read_manifest

from builders import pack_folder


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "converted"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "converted")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def found(folder: Path) -> dict[Path, str]:
    return {one.path: one.what for one in caches_of(folder, read_manifest(folder))}


def test_the_folder_itself_and_what_lies_beside_it(packed: Path) -> None:
    assert found(packed) == {packed: "the data set itself"}
    (packed.with_name("entire-id.features") / "colour").mkdir(parents=True)
    packed.with_name("entire-id.rejected.csv").write_text("path,reason,detail\n")
    assert [path.name for path in found(packed)] == ["entire-id", "entire-id.features", "entire-id.rejected.csv"]


@pytest.mark.parametrize("name", ["entire-id", "MyCrops 2"])
def test_what_datasets_converted_is_found_and_purged(crops: Path, tmp_path: Path, name: str) -> None:
    packed = pack_folder(crops, tmp_path / name, name=name)
    other = pack_folder(crops, tmp_path / "other", name="other")
    for folder, config in ((packed, "test"), (packed, "meta"), (other, "test")):
        datasets.load_dataset(str(folder), config)
    leftovers = [one for one in caches_of(packed, read_manifest(packed)) if "converted" in one.what]
    assert sorted(one.what for one in leftovers) == [
        f"version 1.0.0, converted by datasets (config {config})" for config in ("meta", "test")
    ]
    assert all(list(one.path.glob("*.arrow")) for one in leftovers)
    for one in leftovers:
        subprocess.run(one.purge, shell=True, check=True)
    assert found(packed) == {packed: "the data set itself"}
    assert len(list((tmp_path / "converted").rglob("*.arrow"))) == 2, "what is another's stays"


def test_what_was_downloaded_from_the_hub_is_found(packed: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "hub" / "datasets--owner--reid" / "snapshots"
    whole, older, streamed, other = (snapshots / (letter * 40) for letter in "abcd")
    shutil.copytree(packed, whole)
    older.mkdir()
    fields = json.loads((packed / "manifest.json").read_text()) | {"version": "0.9.0", "content_sha256": "0" * 64}
    (older / "manifest.json").write_text(json.dumps(fields))
    streamed.mkdir()
    (streamed / "README.md").write_text((packed / "README.md").read_text())
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps(fields | {"name": "other"}))
    (other / "README.md").write_text("# other")
    assert found(packed) == {
        packed: "the data set itself",
        whole: "version 1.0.0, downloaded from the Hub",
        older: "version 0.9.0, downloaded from the Hub",
        streamed: "version unknown, downloaded from the Hub",
    }
    purges = {one.purge for one in caches_of(packed, read_manifest(packed))}
    assert f"hf cache rm {'a' * 40}" in purges


def test_an_old_version_of_which_only_shards_were_downloaded_is_found_by_its_repository(
    packed: Path, tmp_path: Path
) -> None:
    old = tmp_path / "hub" / "datasets--owner--entire-id" / "snapshots" / ("e" * 40)
    other = tmp_path / "hub" / "datasets--owner--something" / "snapshots" / ("f" * 40)
    for snapshot in (old, other):
        (snapshot / "data").mkdir(parents=True)
        (snapshot / "README.md").write_text("---\nlicense: other\n---\n")
    assert set(found(packed)) == {packed, old}


def test_caches_that_are_damaged_or_not_there_are_passed_over(packed: Path, tmp_path: Path) -> None:
    place = tmp_path / "converted" / "x" / "default" / "1.0.0" / "hash"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("[")
    (tmp_path / "hub" / "datasets--a--b" / "snapshots" / "c").mkdir(parents=True)
    assert found(packed) == {packed: "the data set itself"}
