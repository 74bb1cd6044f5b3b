"""The README's YAML, read by `datasets` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from entire_id.schema import meta_columns, shard_columns
from entire_id.shards.configs import content_description, render_readme
from entire_id.shards.manifest import read_manifest

from builders import CAMERAS, crop_names, pack_folder, write_crops


def front_matter(folder: Path) -> dict[str, Any]:
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front)


def configs_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {config["config_name"]: config for config in front_matter(folder)["configs"]}


def infos_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {info["config_name"]: info for info in front_matter(folder)["dataset_info"]}


def keys_of(folder: Path, config: str, split: str) -> set[str]:
    rows = datasets.load_dataset(str(folder), config, split=split, streaming=True)
    if "jpg" in rows.features:
        return {row["json"]["key"] for row in rows.remove_columns("jpg")}
    return {row["key"] for row in rows.select_columns("key")}


def pack_crops(tmp_path: Path, names: list[str], cameras: str | None = CAMERAS, **options: object) -> Path:
    source = write_crops(tmp_path / "source", names)
    if cameras is not None:
        (source / "cameras.csv").write_text(cameras)
    return pack_folder(source, tmp_path / "entire-id", **options)


def test_the_configs_of_parquet_are_found_by_datasets(packed: Path) -> None:
    expected = ["default", "test", "meta", "asia", "europe"]
    assert datasets.get_dataset_config_names(str(packed)) == expected
    assert list(configs_of(packed)) == list(infos_of(packed)) == expected
    assert datasets.get_dataset_default_config_name(str(packed)) == "default"


def test_the_configs_of_tar_hold_no_meta(crops: Path, tmp_path: Path) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format="webdataset")
    assert datasets.get_dataset_config_names(str(folder)) == ["default", "test", "asia", "europe"]
    assert "meta" not in infos_of(folder)


@pytest.mark.parametrize("cameras", [None, "camid,continent\n0,unknown\n"], ids=["no-file", "said-so"])
@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_no_continent_has_a_config_when_all_are_unknown(tmp_path: Path, cameras: str | None, format_: str) -> None:
    folder = pack_crops(tmp_path, crop_names(), cameras, format=format_)
    expected = ["default", "test", "meta"] if format_ == "parquet" else ["default", "test"]
    assert datasets.get_dataset_config_names(str(folder)) == expected


def test_unknown_is_a_config_like_any_other_beside_a_known_continent(tmp_path: Path) -> None:
    folder = pack_crops(tmp_path, crop_names(), "camid,continent\n0,asia\n")
    assert datasets.get_dataset_config_names(str(folder)) == ["default", "test", "meta", "asia", "unknown"]
    assert {key.split("_c")[1][:3] for key in keys_of(folder, "unknown", "query")} == {"001", "021"}


def test_the_features_of_every_parquet_config_are_those_of_the_schema(packed: Path) -> None:
    for config in ("default", "test", "meta", "asia"):
        features = datasets.load_dataset_builder(str(packed), config).info.features
        columns = meta_columns() if config == "meta" else shard_columns()
        assert list(features) == [column.name for column in columns]
        for column in columns:
            kind = datasets.Image() if column.dtype == "image" else datasets.Value(column.dtype)
            assert features[column.name] == kind


def test_the_features_of_tar_name_the_image_the_labels_and_nothing_else(crops: Path, tmp_path: Path) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format="webdataset")
    features = datasets.load_dataset_builder(str(folder)).info.features
    assert set(features) == {"jpg", "json", "__key__", "__url__"}
    assert features["jpg"] == datasets.Image()
    labels = {column.name: datasets.Value(column.dtype) for column in shard_columns() if column.dtype != "image"}
    assert dict(features["json"]) == {"path": datasets.Value("string"), **labels}


def test_the_rows_of_a_tar_have_those_features(crops: Path, tmp_path: Path) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format="webdataset")
    rows = datasets.load_dataset(str(folder), split="query", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 12
    assert rows[0]["jpg"].size == (24, 48)
    assert rows[0]["json"]["key"] == rows[0]["__key__"]
    assert {row["json"]["camid"] for row in rows} == {0, 1, 21}


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_a_config_says_version_and_content(crops: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format=format_, version="3.4.5")
    digest = read_manifest(folder).content_sha256
    for config in configs_of(folder).values():
        assert config["version"] == "3.4.5"
        assert config["description"] == f"content sha256:{digest}" == content_description(digest)
    info = datasets.load_dataset_builder(str(folder)).info
    assert str(info.version) == "3.4.5"


def test_one_changed_byte_changes_every_config(crops: Path, tmp_path: Path) -> None:
    one = pack_folder(crops, tmp_path / "one" / "entire-id")
    victim = next((crops / "query").iterdir())
    data = bytearray(victim.read_bytes())
    data[-10] ^= 1
    victim.write_bytes(data)
    other = pack_folder(crops, tmp_path / "other" / "entire-id")
    before, after = configs_of(one), configs_of(other)
    assert infos_of(one)["default"]["splits"] == infos_of(other)["default"]["splits"], "counts and sizes are the same"
    assert all(before[name] != after[name] for name in before)


def test_only_default_is_the_default(packed: Path) -> None:
    assert {name: config.get("default", False) for name, config in configs_of(packed).items()} == {
        "default": True,
        "test": False,
        "meta": False,
        "asia": False,
        "europe": False,
    }


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_the_number_of_examples_is_that_of_the_rows(crops: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(crops, tmp_path / "entire-id", format=format_, shard_rows=5)
    rows = {"default": (12, 24), "test": (12, 24), "meta": (12, 24), "asia": (8, 16), "europe": (4, 8)}
    for name, info in infos_of(folder).items():
        assert {s["name"]: s["num_examples"] for s in info["splits"]} == dict(
            zip(("query", "gallery"), rows[name], strict=True)
        )
        for split in info["splits"]:
            assert len(keys_of(folder, name, split["name"])) == split["num_examples"]


def test_the_number_of_bytes_is_that_of_the_loaded_table(packed: Path, tmp_path: Path) -> None:
    for name in ("default", "meta"):
        rows = datasets.load_dataset(str(packed), name, cache_dir=str(tmp_path / "cache"))
        for split in infos_of(packed)[name]["splits"]:
            assert split["num_bytes"] == pytest.approx(rows[split["name"]].data.nbytes, rel=0.02)


def test_download_sizes_are_those_of_the_files(packed: Path) -> None:
    for name, info in infos_of(packed).items():
        globs = [entry["path"] for entry in configs_of(packed)[name]["data_files"]]
        files = {path for pattern in globs for path in packed.glob(pattern)}
        assert info["download_size"] == sum(path.stat().st_size for path in files)
        assert info["dataset_size"] == sum(split["num_bytes"] for split in info["splits"])


@pytest.mark.parametrize(
    ("folders", "splits", "test_splits"),
    [
        (("query", "bounding_box_test"), ["query", "gallery"], ["query", "gallery"]),
        (("bounding_box_train", "query", "bounding_box_test"), ["train", "query", "gallery"], ["query", "gallery"]),
        (("bounding_box_test",), ["gallery"], ["gallery"]),
        (("bounding_box_train",), ["train"], None),
    ],
    ids=["test-part", "all", "gallery-alone", "train-alone"],
)
def test_a_split_without_rows_is_left_out(
    tmp_path: Path, folders: tuple[str, ...], splits: list[str], test_splits: list[str] | None
) -> None:
    folder = pack_crops(tmp_path, [f"{folder}/{pid:05d}_c000s0_{pid}.jpg" for folder in folders for pid in range(3)])
    assert datasets.get_dataset_split_names(str(folder)) == splits
    if test_splits is None:
        assert "test" not in datasets.get_dataset_config_names(str(folder))
    else:
        assert datasets.get_dataset_split_names(str(folder), "test") == test_splits


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_a_continent_without_queries_has_a_config_without_them(tmp_path: Path, format_: str) -> None:
    names = ["query/00000_c000s0_1.jpg", "bounding_box_test/00000_c001s0_2.jpg", "bounding_box_test/00000_c021s0_3.jpg"]
    folder = pack_crops(tmp_path, names, format=format_)
    assert datasets.get_dataset_split_names(str(folder), "europe") == ["gallery"]
    assert keys_of(folder, "europe", "gallery") == {"gallery/00000_c021s0_3"}
    loaded = datasets.load_dataset(str(folder), "europe", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"gallery": 1}


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_continents_whose_names_begin_alike_do_not_mix(tmp_path: Path, format_: str) -> None:
    cameras = "camid,continent\n0,asia\n1,Asia-Minor\n21,as\n"
    folder = pack_crops(tmp_path, crop_names(), cameras, format=format_, shard_rows=4)
    camids = {"asia": "000", "asia_minor": "001", "as": "021"}
    assert set(camids) <= set(datasets.get_dataset_config_names(str(folder)))
    for continent, camid in camids.items():
        for split, count in (("query", 4), ("gallery", 8)):
            keys = keys_of(folder, continent, split)
            assert len(keys) == count
            assert {key.split("_c")[1][:3] for key in keys} == {camid}


def test_patterns_find_exactly_the_shards_of_the_manifest(packed: Path) -> None:
    manifest = read_manifest(packed)
    for name, config in configs_of(packed).items():
        found = {
            path.relative_to(packed).as_posix() for entry in config["data_files"] for path in packed.glob(entry["path"])
        }
        members = [s for s in manifest.shards if name in ("default", "test", "meta", s.continent)]
        assert found == {shard.meta_path if name == "meta" else shard.path for shard in members}


def test_meta_rows_say_where_the_bytes_lie(packed: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(packed), "meta", split="gallery", cache_dir=str(tmp_path / "cache"))
    row = rows[7]
    data = (packed / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
    assert data == next(packed.parent.glob(f"crops/bounding_box_test/{row['key'].split('/')[1]}.jpg")).read_bytes()


def test_the_page_tells_that_train_is_missing_and_only_then(packed: Path, tmp_path: Path) -> None:
    assert "no train split" in (packed / "README.md").read_text()
    whole = pack_crops(tmp_path / "whole", ["bounding_box_train/00000_c000s0_1.jpg", *crop_names(1)])
    assert "no train split" not in (whole / "README.md").read_text()


def test_the_page_shows_code_that_runs(packed_any: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (packed_any / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(packed_any.parent)
    exec(code, {})


def test_the_page_is_made_from_the_manifest_alone(packed_any: Path) -> None:
    assert render_readme(read_manifest(packed_any)) == (packed_any / "README.md").read_text()
