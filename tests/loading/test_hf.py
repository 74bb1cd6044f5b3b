"""Plain `load_dataset` and `entire_id.load` on packed folders."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image

import entire_id
from entire_id.errors import (
    ConfigNotFoundError,
    DatasetNotFoundError,
    ManifestError,
    RepositoryNotFoundError,
    SplitNotFoundError,
)

from builders import CAMERAS, crop_names, image_bytes, pack_folder, write_crops

SIZES = {"query": 12, "gallery": 24}


def keys(rows: datasets.Dataset | datasets.IterableDataset) -> set[str]:
    """The keys of Parquet rows and of tar rows."""
    return {row["key"] if "key" in row else row["json"]["key"] for row in rows}


def stored_bytes(rows: datasets.Dataset, column: str) -> dict[str, bytes]:
    """File name → undecoded image bytes."""
    raw = rows.cast_column(column, datasets.Image(decode=False))
    names = raw["json"] if column == "jpg" else raw["image"]
    return {name["path"]: image["bytes"] for name, image in zip(names, raw[column], strict=True)}


def test_bare_name_loads_in_the_folder_that_holds_it(packed_any: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed_any.parent)
    splits = datasets.load_dataset("entire-id")
    assert {name: len(rows) for name, rows in splits.items()} == SIZES
    assert all(len(keys(rows)) == len(rows) for rows in splits.values())


def test_bare_name_streams(packed_any: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed_any.parent)
    splits = datasets.load_dataset("entire-id", streaming=True)
    assert {name: len(keys(rows)) for name, rows in splits.items()} == SIZES


def test_order_of_splits_is_train_query_gallery(tmp_path: Path) -> None:
    names = [*crop_names(), "bounding_box_train/00000_c000s0_1.jpg"]
    packed = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    assert list(datasets.load_dataset(str(packed))) == ["train", "query", "gallery"]


def test_configs(packed: Path) -> None:
    assert datasets.get_dataset_config_names(str(packed)) == ["default", "test", "meta", "asia", "europe"]
    for config, sizes in {
        "test": SIZES,
        "meta": SIZES,
        "asia": {"query": 8, "gallery": 16},
        "europe": {"query": 4, "gallery": 8},
    }.items():
        splits = datasets.load_dataset(str(packed), config)
        assert {name: len(rows) for name, rows in splits.items()} == sizes
    assert "image" not in datasets.load_dataset(str(packed), "meta", split="query").column_names


def test_rows_are_what_was_packed(packed: Path, crops: Path) -> None:
    row = next(row for row in datasets.load_dataset(str(packed), split="query") if row["camid"] == 21)
    file = crops / "query" / f"{row['pid']:05d}_c021s0_760487.jpg"
    assert row["key"] == f"query/{row['pid']:05d}_c021s0_760487"
    assert (row["continent"], row["seq"], row["frame"]) == ("europe", 0, 760487)
    with Image.open(file) as image:
        assert row["image"].size == (row["width"], row["height"]) == image.size


def test_images_are_byte_equal_to_their_files(packed_any: Path, crops: Path) -> None:
    column = "jpg" if any(packed_any.rglob("*.tar")) else "image"
    for split, folder in {"query": "query", "gallery": "bounding_box_test"}.items():
        found = stored_bytes(datasets.load_dataset(str(packed_any), split=split), column)
        assert found == {path.name: path.read_bytes() for path in (crops / folder).iterdir()}


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_real_crops(real_crops: Path, tmp_path: Path, format_: str) -> None:
    packed = pack_folder(real_crops, tmp_path / "entire-id", format=format_)
    column = "jpg" if format_ == "webdataset" else "image"
    for split, folder, size in [("query", "query", 24), ("gallery", "bounding_box_test", 378)]:
        rows = datasets.load_dataset(str(packed), split=split)
        assert len(rows) == size
        found = stored_bytes(rows, column)
        assert found == {path.name: path.read_bytes() for path in (real_crops / folder).iterdir()}
        labels = [row["json"] for row in rows] if column == "jpg" else rows.remove_columns("image")
        assert 0 in {row["pid"] for row in labels}
        assert 0 in {row["camid"] for row in labels}
        stream = datasets.load_dataset(str(packed), split=split, streaming=True)
        assert keys(stream) == keys(rows)


def test_two_folders_of_one_name_that_differ_in_one_byte_load_their_own_rows(tmp_path: Path) -> None:
    """The local cache of `datasets` is named by version, counts and patterns: these two have all of them equal."""
    packed = []
    for number, last in enumerate((b"a", b"b")):
        crops = write_crops(tmp_path / str(number) / "crops", crop_names())
        changed = crops / "query" / "00000_c000s0_760487.jpg"
        changed.write_bytes(image_bytes(99) + last)  # bytes behind the end-of-image marker do not change the picture
        packed.append(pack_folder(crops, tmp_path / str(number) / "entire-id"))
    sizes = [{path.name: path.stat().st_size for path in (folder / "data").rglob("*.parquet")} for folder in packed]
    assert sizes[0] == sizes[1]
    for folder, last in zip(packed, (b"a", b"b"), strict=True):
        for load in (datasets.load_dataset, entire_id.load):
            found = stored_bytes(load(str(folder), split="query"), "image")
            assert found["00000_c000s0_760487.jpg"][-1:] == last


def test_folder_packed_anew_under_the_same_name_is_not_served_from_the_cache(crops: Path, tmp_path: Path) -> None:
    old = pack_folder(crops, tmp_path / "entire-id")
    assert len(entire_id.load(old, split="query")) == 12
    old.rename(tmp_path / "old")
    (crops / "query" / "00000_c000s0_760487.jpg").unlink()
    new = pack_folder(crops, tmp_path / "entire-id")
    assert len(entire_id.load(new, split="query")) == 11


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
@pytest.mark.parametrize("case", ["png", "unknown", "no-query-in-europe", "one-crop-each", "table"])
def test_variants_load_map_style_and_streamed(tmp_path: Path, format_: str, case: str) -> None:
    names = crop_names(people=2)
    cameras = CAMERAS
    if case == "png":
        names = [name.replace(".jpg", ".png") if "s0_760490" in name else name for name in names]
    if case == "no-query-in-europe":
        names = [name for name in names if not ("query" in name and "c021" in name)]
    if case == "one-crop-each":
        names = ["query/00000_c000s0_1.jpg", "bounding_box_test/00000_c001s0_1.jpg"]
    source = write_crops(tmp_path / "crops", names)
    if case != "unknown":
        (source / "cameras.csv").write_text(cameras)
    if case == "table":  # no sequence, no frame
        lines = [f"{name},{name.split('/')[1][:5]},{name.split('_c')[1][:3]},query" for name in names]
        (source / "crops.csv").write_text("path,pid,camid,split\n" + "\n".join(lines) + "\n")
        source /= "crops.csv"
    packed = pack_folder(source, tmp_path / "entire-id", format=format_)
    for config in datasets.get_dataset_config_names(str(packed)):
        splits = datasets.load_dataset(str(packed), config)
        streams = datasets.load_dataset(str(packed), config, streaming=True)
        for split, rows in splits.items():
            assert keys(rows) == keys(streams[split])
            column = "jpg" if format_ == "webdataset" else "image"
            if config != "meta":
                assert all(isinstance(row[column], Image.Image) for row in rows)
                assert all(isinstance(row[column], Image.Image) for row in streams[split])
    total = sum(len(rows) for rows in datasets.load_dataset(str(packed)).values())
    assert total == len(names)


def test_default_collate_runs_over_rows(packed: Path) -> None:
    torch_data = pytest.importorskip("torch.utils.data")

    rows = datasets.load_dataset(str(packed), split="gallery").cast_column("image", datasets.Image(decode=False))
    seen = 0
    for batch in torch_data.DataLoader(rows, batch_size=5):
        seen += len(batch["pid"])
        assert isinstance(batch["image"]["bytes"][0], bytes)
        assert set(batch) >= {"key", "pid", "camid", "continent", "seq", "frame", "width", "height", "xxh3"}
    assert seen == 24


def test_default_collate_runs_over_meta_and_tar_labels(packed: Path, crops: Path, tmp_path: Path) -> None:
    torch_data = pytest.importorskip("torch.utils.data")

    meta = datasets.load_dataset(str(packed), "meta", split="gallery")
    tar = datasets.load_dataset(str(pack_folder(crops, tmp_path / "tar", format="webdataset")), split="gallery")
    for rows, column in ((meta, "pid"), (tar.remove_columns("jpg"), "json")):
        assert sum(len(batch[column]) for batch in torch_data.DataLoader(rows, batch_size=24)) > 0


def test_load_is_plain_load_dataset(packed: Path) -> None:
    assert {name: len(rows) for name, rows in entire_id.load(packed).items()} == SIZES
    assert len(keys(entire_id.load(packed, "asia", split="gallery", streaming=True))) == 16
    assert len(entire_id.load(str(packed), split="gallery[:5]+query")) == 17


def test_missing_train_part_says_who_did_not_release_it(packed: Path) -> None:
    with pytest.raises(SplitNotFoundError, match=r"no split 'train'.*not released by the authors"):
        entire_id.load(packed, split="train")
    with pytest.raises(SplitNotFoundError, match=r"no split 'validation' here; there is query, gallery\.$"):
        entire_id.load(packed, split="validation[:3]")


def test_unknown_config_lists_those_there_are(packed: Path) -> None:
    with pytest.raises(ConfigNotFoundError, match="no config 'africa'; it has default, test, meta, asia, europe"):
        entire_id.load(packed, "africa")


def test_missing_path_is_an_error_even_if_a_cache_knows_the_name(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entire_id.load("entire-id", split="query")
    packed.rename(tmp_path / "elsewhere")
    assert len(datasets.load_dataset("entire-id", "default", split="query"))  # plain `datasets` serves some stranger
    with pytest.raises(DatasetNotFoundError, match="no such folder, and no repository name"):
        entire_id.load("entire-id", split="query")
    for path in ("./entire-id", str(packed), "a/b/c"):
        with pytest.raises(DatasetNotFoundError):
            entire_id.load(path)


def test_folder_that_was_never_packed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no manifest\.json in it"):
        entire_id.load(tmp_path)


def test_unreachable_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="the Hub cannot be reached, and it is not in the cache"):
        entire_id.load("someone/entire-id")
    with pytest.raises(RepositoryNotFoundError, match="cannot be reached"):
        entire_id.load("hf://datasets/someone/entire-id", revision="v1.0.0")


def test_revision_of_a_folder_is_an_error(packed: Path) -> None:
    with pytest.raises(ValueError, match=r"revision 'v1\.0\.0' belongs to a repository"):
        entire_id.load(packed, revision="v1.0.0")


@pytest.mark.parametrize("damage", ["cut", "gone", "extra", "readme", "pattern", "no-readme", "no-yaml"])
def test_damaged_folder_is_an_error(packed: Path, damage: str) -> None:
    shard, readme = packed / "data/query/asia-00000.parquet", packed / "README.md"
    if damage == "cut":
        os.truncate(shard, 100)
    elif damage == "gone":
        shard.unlink()
    elif damage == "extra":
        shutil.copy(shard, shard.with_name("asia-00001.parquet"))
    elif damage == "pattern":
        readme.write_text(readme.read_text().replace("data/query/", "data/gallery/"))
    elif damage == "readme":
        readme.write_text(readme.read_text().replace("sha256:", "sha256:0"))
    elif damage == "no-readme":
        readme.unlink()
    else:
        readme.write_text("# nothing\n")
    with pytest.raises(ManifestError, match="entire-id verify"):
        entire_id.load(packed)


def test_readme_counts_are_true(packed_any: Path) -> None:
    for split, rows in datasets.load_dataset(str(packed_any)).items():
        stated = datasets.load_dataset_builder(str(packed_any)).info.splits[split]
        assert stated.num_examples == len(rows)
        assert stated.num_bytes == pytest.approx(rows.data.nbytes, rel=0.25)


def test_images_decode_whatever_their_ending(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "crops", crop_names(people=2))
    png = io.BytesIO()
    Image.new("RGBA", (20, 40), (9, 8, 7, 255)).save(png, "PNG")
    (source / "query" / "00000_c000s0_760487.jpg").write_bytes(png.getvalue())
    packed = pack_folder(source, tmp_path / "entire-id", format="webdataset")
    row = next(
        row for row in datasets.load_dataset(str(packed), split="query") if row["json"]["path"].startswith("00000_c000")
    )
    assert row["jpg"].convert("RGB").getpixel((0, 0)) == (9, 8, 7)


def test_split_of_another_config_is_named(tmp_path: Path) -> None:
    names = [*crop_names(), "bounding_box_train/00000_c000s0_1.jpg"]
    packed = pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id")
    with pytest.raises(SplitNotFoundError, match=r"query, gallery\. It is in config default, meta\.$"):
        entire_id.load(packed, "test", split="train")


@pytest.mark.parametrize("split", ["Train", "no_such", "gallery[:2]+quary"])
def test_split_names_are_read_whole(packed: Path, split: str) -> None:
    with pytest.raises(SplitNotFoundError, match=f"no split '{split.rpartition('+')[2]}'"):
        entire_id.load(packed, split=split)


def test_all_splits_at_once(packed: Path) -> None:
    assert len(entire_id.load(packed, split="all")) == 36


def test_data_set_has_the_name_of_its_folder(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_folder(crops, tmp_path / "my-crops", name="")
    readme = (packed / "README.md").read_text()
    assert "pretty_name: my-crops" in readme
    assert "load_dataset('my-crops'" in readme
    assert "entire-id 1.0.0" not in readme


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_are_named_together(msmt: Path, streaming: bool) -> None:
    rows = entire_id.load(msmt, split="val+train", streaming=streaming)
    assert [row["key"] for row in rows] == entire_id.CropDataset(msmt, "val+train").keys
    with pytest.raises(SplitNotFoundError, match="no split 'nobody'"):
        entire_id.load(msmt, split="train+nobody", streaming=streaming)
