"""Packing: what appears, where, with which bytes; and what does not appear when it goes wrong."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from entire_id.errors import (
    CropRejectedError,
    DatasetNotFoundError,
    EntireIdError,
    NothingToPackError,
    OutputExistsError,
    PreviousVersionError,
)
from entire_id.records import JUNK_PID, Reason
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.manifest import file_digest, read_manifest
from entire_id.shards.pack import PackConfig, PackReport, pack
from entire_id.shards.verify import verify
from entire_id.sources.layouts import open_source

from builders import (
    CAMERAS,
    Wrapped,
    crop_names,
    go_on,
    image_bytes,
    many_crops,
    pack_folder,
    packed_images,
    rejected_rows,
    resize_disk,
    run_until,
    settle,
    stop_pack,
    tree,
    write_crops,
)

FORMATS = ["parquet", "webdataset"]
FOLDER_OF_SPLIT = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def meta_of(folder: Path) -> pa.Table:
    manifest = read_manifest(folder)
    return pa.concat_tables(pq.read_table(folder / shard.meta_path, partitioning=None) for shard in manifest.shards)


def crops_in(folder: Path):
    """Yield (images, names, labels) of every row group, shard after shard."""
    manifest = read_manifest(folder)
    read = {"parquet": parquet.read_crops, "webdataset": tar.read_crops}[manifest.format]
    for shard in manifest.shards:
        yield from read(folder / shard.path)


def zip_of(folder: Path, path: Path, order: int = 1) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"))[::order]:
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


# --- the same bytes, whatever the way there


def test_packing_twice_gives_the_same_bytes(crops: Path, tmp_path: Path) -> None:
    for format_ in FORMATS:
        one = pack_folder(crops, tmp_path / f"one-{format_}", format=format_, shard_rows=7)
        other = pack_folder(crops, tmp_path / f"other-{format_}", format=format_, shard_rows=7)
        assert tree(one) == tree(other)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(crops: Path, tmp_path: Path) -> None:
    here = pack_folder(crops, tmp_path / "here")
    command = [sys.executable, "-m", "entire_id", "pack", str(crops), str(tmp_path / "there"), "--name", "entire-id"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert tree(here) == tree(tmp_path / "there")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_folder_and_a_zip_of_it_give_the_same_bytes(crops: Path, tmp_path: Path, format_: str) -> None:
    archive = zip_of(crops, tmp_path / "crops.zip", order=-1)
    one = pack_folder(crops, tmp_path / "one", format=format_)
    other = pack_folder(archive, tmp_path / "other", format=format_)
    assert tree(one) == tree(other)


def test_the_order_in_which_files_were_made_and_their_times_do_not_matter(crops: Path, tmp_path: Path) -> None:
    files = sorted(path for path in crops.rglob("*") if path.is_file())
    for number in np.random.default_rng(0).permutation(len(files)).tolist():
        copy = tmp_path / "copy" / files[number].relative_to(crops)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(files[number].read_bytes())
        os.utime(copy, (number, number))
    assert tree(pack_folder(crops, tmp_path / "one")) == tree(pack_folder(tmp_path / "copy", tmp_path / "other"))


def test_another_seed_moves_rows_and_says_so(crops: Path, tmp_path: Path) -> None:
    one, other = (pack_folder(crops, tmp_path / f"seed{seed}", seed=seed) for seed in (0, 1))
    assert meta_of(one)["key"].to_pylist() != meta_of(other)["key"].to_pylist()
    assert sorted(meta_of(one)["key"].to_pylist()) == sorted(meta_of(other)["key"].to_pylist())
    assert read_manifest(other).seed == 1


# --- what is in it


def test_the_folder_holds_what_the_format_says_and_nothing_else(crops: Path, tmp_path: Path) -> None:
    for format_, ending in zip(FORMATS, ("parquet", "tar"), strict=True):
        folder = pack_folder(crops, tmp_path / format_, format=format_)
        stems = [f"{split}/{continent}-00000" for split in ("query", "gallery") for continent in ("asia", "europe")]
        expected = {"README.md", "manifest.json", "cameras.csv"}
        expected |= {f"data/{stem}.{ending}" for stem in stems} | {f"meta/{stem}.parquet" for stem in stems}
        assert {name for name in tree(folder) if (folder / name).is_file()} == expected
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(format_)) == [format_]


@pytest.mark.parametrize("format_", FORMATS)
def test_every_image_is_byte_equal_to_its_file(tmp_path: Path, format_: str) -> None:
    names = [*crop_names(3), "bounding_box_test/00001_c000s0_9.png", "bounding_box_train/-1_c001s2_3.jpg"]
    source = write_crops(tmp_path / "source", [*names, "bounding_box_test/day 1/a.b/Ünïcode/00002_c000s1_8.jpg"])
    folder = pack_folder(source, tmp_path / "entire-id", format=format_)
    seen = set()
    for images, file_names, labels in crops_in(folder):
        for image, name, key in zip(images, file_names, labels["key"].to_pylist(), strict=True):
            split, inner = key.split("/", 1)
            inner = inner.replace("%2E", ".").replace("%25", "%")
            path = source / FOLDER_OF_SPLIT[split] / Path(inner).parent / name
            assert image == path.read_bytes()
            assert Path(name).stem == Path(inner).name
            assert "/" not in name
            assert "." not in key
            seen.add(path)
    assert seen == {path for path in source.rglob("*") if path.is_file()}


def test_offsets_point_at_the_bytes_of_the_source(packed_any: Path, crops: Path) -> None:
    meta = meta_of(packed_any)
    assert len(meta) == 36
    for row in meta.to_pylist():
        split, stem = row["key"].split("/")
        data = (packed_any / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        assert data == (crops / FOLDER_OF_SPLIT[split] / f"{stem}.jpg").read_bytes()
        assert row["xxh3"] == xxhash.xxh3_64_hexdigest(data)
        assert (row["width"], row["height"]) == (24, 48)


def test_meta_has_the_rows_of_its_shard_in_their_order(packed_any: Path) -> None:
    manifest = read_manifest(packed_any)
    read = {"parquet": parquet.read_crops, "webdataset": tar.read_crops}[manifest.format]
    for shard in manifest.shards:
        meta = pq.read_table(packed_any / shard.meta_path, partitioning=None)
        labels = pa.concat_tables(labels for _, _, labels in read(packed_any / shard.path))
        assert meta.select(labels.column_names).equals(labels)
        assert set(meta["shard"].to_pylist()) == {shard.path}
        assert len(meta) == shard.rows


def test_numbers_come_from_the_whole_name(tmp_path: Path) -> None:
    """`00009_c021s0_760487.jpg` is pid 9, camera 21.

    The usual `([-\\d]+)_c(\\d)` makes camera 0 of it: readers that use it see a handful of cameras, and a protocol that
    ignores the query's own camera ignores most matches.
    """
    source = write_crops(tmp_path / "source", ["bounding_box_test/00009_c021s0_760487.jpg", "query/0_c0s3_5.jpg"])
    meta = {row["key"]: row for row in meta_of(pack_folder(source, tmp_path / "out")).to_pylist()}
    row = meta["gallery/00009_c021s0_760487"]
    assert (row["pid"], row["camid"], row["seq"], row["frame"]) == (9, 21, 0, 760487)
    row = meta["query/0_c0s3_5"]
    assert (row["pid"], row["camid"], row["seq"], row["frame"]) == (0, 0, 3, 5)


def test_there_are_no_nulls_and_the_schemas_are_those_of_the_format(packed: Path) -> None:
    for shard in read_manifest(packed).shards:
        for path, columns in ((shard.path, shard_columns()), (shard.meta_path, meta_columns())):
            table = pq.read_table(packed / path, partitioning=None)
            assert table.schema.equals(arrow_schema(columns))
            assert all(column.null_count == 0 for column in table.columns)
            if "image" in table.column_names:
                image = table["image"].combine_chunks()
                assert image.field("bytes").null_count == image.field("path").null_count == 0


def test_absent_sequence_and_frame_are_minus_one(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", ["a/1.jpg", "a/2.png"])
    (source / "crops.csv").write_text("path,pid,camid,split\na/1.jpg,0,0,train\na/2.png,0,1,val\n")
    folder = pack_folder(source / "crops.csv", tmp_path / "out")
    meta = meta_of(folder)
    assert meta["seq"].to_pylist() == meta["frame"].to_pylist() == [-1, -1]
    assert list(read_manifest(folder).splits) == ["train", "val"]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_manifest_lists_every_file_with_its_size_and_digest(crops: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(crops, tmp_path / "out", format=format_, shard_rows=5)
    manifest = read_manifest(folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert [entry.path for entry in manifest.files] == sorted(files - {"README.md", "manifest.json"})
    rows = {path: shard.rows for shard in manifest.shards for path in (shard.path, shard.meta_path)}
    for entry in manifest.files:
        assert entry.bytes == (folder / entry.path).stat().st_size
        assert entry.sha256 == file_digest(folder / entry.path)
        assert entry.rows == rows.get(entry.path, 3)
    assert manifest.num_rows == 36


def test_the_manifest_says_who_lies_in_which_shard(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", [*crop_names(6), "query/-1_c000s0_1.jpg", "query/-1_c000s0_2.jpg"])
    (source / "cameras.csv").write_text(CAMERAS)
    folder = pack_folder(source, tmp_path / "out", shard_rows=8)
    manifest = read_manifest(folder)
    homes: dict[tuple[str, str, int], str] = {}
    for shard in manifest.shards:
        meta = pq.read_table(folder / shard.meta_path, partitioning=None)
        found = sorted(set(meta["pid"].to_pylist()) - {JUNK_PID})
        assert list(shard.pids) == found
        assert shard.image_bytes == sum(meta["length"].to_pylist())
        assert shard.rows <= 8
        for pid in found:
            assert homes.setdefault((shard.split, shard.continent, pid), shard.path) == shard.path
    assert len(homes) == 6 * 2 * 2


def test_junk_is_packed_but_is_no_identity(tmp_path: Path) -> None:
    names = ["query/00000_c000s0_1.jpg", "bounding_box_test/00000_c001s0_1.jpg", "bounding_box_test/-1_c001s0_2.jpg"]
    folder = pack_folder(write_crops(tmp_path / "source", names), tmp_path / "out")
    totals = read_manifest(folder).splits["gallery"]
    assert (totals.rows, totals.people) == (2, 1)
    assert sorted(meta_of(folder)["pid"].to_pylist()) == [-1, 0, 0]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_manifest_lists_the_row_groups_of_the_shard(tmp_path: Path, format_: str) -> None:
    source = many_crops(tmp_path / "source", people=40, shots=20)
    folder = pack_folder(source, tmp_path / "out", format=format_)
    for shard in read_manifest(folder).shards:
        assert sum(shard.row_groups) == shard.rows
        if format_ == "parquet":
            with pq.ParquetFile(folder / shard.path) as file:
                groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
            assert list(shard.row_groups) == groups
        if shard.split == "gallery":
            assert len(shard.row_groups) > 2
            assert all(128 <= rows < 536 for rows in shard.row_groups[:-1])


def test_both_formats_hold_the_same_rows_in_the_same_order(crops: Path, tmp_path: Path) -> None:
    one, other = (meta_of(pack_folder(crops, tmp_path / format_, format=format_)) for format_ in FORMATS)
    own = ["shard", "offset"]
    assert one.drop_columns(own).equals(other.drop_columns(own))


def test_cameras_are_rewritten_with_slugs_and_everything_the_owner_said(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", ["query/1_c007s0_1.jpg", "query/1_c3s0_1.jpg", "query/1_c000s0_1.jpg"])
    text = 'scene,continent,camid,note\n"mall, inner",North America,7,"say ""hi"""\nbeach,Europe,0,\nroof,Asia,99,\n'
    (source / "cameras.csv").write_text("\ufeff" + text, encoding="utf-8")
    folder = pack_folder(source, tmp_path / "out")
    with (folder / "cameras.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [list(row) for row in rows] == [["camid", "continent", "scene", "note"]] * 4
    assert [tuple(row.values()) for row in rows] == [
        ("0", "europe", "beach", ""),
        ("3", "unknown", "", ""),
        ("7", "north_america", "mall, inner", 'say "hi"'),
        ("99", "asia", "roof", ""),
    ]
    assert "continent,camid" not in (folder / "cameras.csv").read_text()


def test_a_cameras_file_is_written_without_one_in_the_source(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", ["query/1_c007s0_1.jpg"])
    report = pack(open_source(source), tmp_path / "out", PackConfig())
    assert (tmp_path / "out" / "cameras.csv").read_text() == "camid,continent\n7,unknown\n"
    assert report.cameras_undescribed == (7,)


def test_a_note_of_several_lines_is_one_camera(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", ["query/1_c007s0_1.jpg"])
    (source / "cameras.csv").write_text('camid,continent,note\n7,asia,"two\nlines"\n')
    folder = pack_folder(source, tmp_path / "out")
    [entry] = [entry for entry in read_manifest(folder).files if entry.path == "cameras.csv"]
    assert entry.rows == 1


def test_packed_cameras_pack_again_to_the_same_bytes(crops: Path, tmp_path: Path) -> None:
    one = pack_folder(crops, tmp_path / "one")
    shutil.copy(one / "cameras.csv", crops / "cameras.csv")
    assert tree(pack_folder(crops, tmp_path / "other")) == tree(one)


# --- what is left out


def spoil(folder: Path) -> dict[str, str]:
    """Add files that cannot be packed and return the reason of each."""
    gallery = folder / "bounding_box_test"
    (gallery / "00000_c000s0_1.jpg").write_bytes(b"")
    (gallery / "00000_c000s0_2.jpg").write_bytes(image_bytes(99)[:-40])
    (gallery / "00000_c000s0_3.jpg").write_bytes(b"no image at all")
    (gallery / "Thumbs.db").write_bytes(b"x")
    (gallery / "somebody.jpg").write_bytes(image_bytes(98))
    (folder / "notes.txt").write_text("x")
    return {
        "bounding_box_test/00000_c000s0_1.jpg": Reason.EMPTY,
        "bounding_box_test/00000_c000s0_2.jpg": Reason.TRUNCATED,
        "bounding_box_test/00000_c000s0_3.jpg": Reason.NOT_AN_IMAGE,
        "bounding_box_test/Thumbs.db": Reason.NOT_AN_IMAGE,
        "bounding_box_test/somebody.jpg": Reason.NAME,
        "notes.txt": Reason.OUTSIDE_SPLITS,
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_rejected_files_stand_beside_the_folder_and_the_counts_add_up(
    crops: Path, tmp_path: Path, format_: str
) -> None:
    expected = spoil(crops)
    report = pack(open_source(crops), tmp_path / "out", PackConfig(format=format_))
    assert report.rejected_csv == tmp_path / "out.rejected.csv"
    with report.rejected_csv.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["path"]: row["reason"] for row in rows} == expected
    assert len(rows) == len(expected) == sum(report.rejected.values())
    found = sum(path.is_file() for path in crops.rglob("*")) - 1  # cameras.csv
    assert report.manifest.num_rows + len(rows) == found
    assert not list(report.folder.rglob("*rejected*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "out", "out.rejected.csv"]


def test_rejected_files_change_nothing_for_the_others(crops: Path, tmp_path: Path) -> None:
    clean = pack_folder(crops, tmp_path / "clean")
    spoil(crops)
    spoilt = pack_folder(crops, tmp_path / "spoilt")
    order = meta_of(clean)["key"].to_pylist()
    assert sorted(meta_of(spoilt)["key"].to_pylist()) == sorted(order)


def test_nothing_rejected_leaves_no_list_and_takes_an_old_one_away(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "out.rejected.csv").write_text("path,reason,detail\nold.jpg,empty,\n")
    report = pack(open_source(crops), tmp_path / "out", PackConfig())
    assert report.rejected_csv is None
    assert not (tmp_path / "out.rejected.csv").exists()


def test_a_shard_whose_crops_are_all_rejected_does_not_appear(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "source", ["bounding_box_test/00000_c000s0_1.jpg"])
    (source / "query").mkdir()
    (source / "query" / "00000_c001s0_1.jpg").write_bytes(b"")
    folder = pack_folder(source, tmp_path / "out")
    assert list(read_manifest(folder).splits) == ["gallery"]
    assert [name for name in tree(folder) if "query" in name] == []


def test_strict_stops_at_the_first_rejected_file_and_leaves_nothing(crops: Path, tmp_path: Path) -> None:
    for number, spoiler in enumerate(("bounding_box_test/somebody.jpg", "query/00000_c000s0_1.jpg")):
        before = sorted(path.name for path in tmp_path.iterdir())
        (crops / spoiler).write_bytes(b"")
        with pytest.raises(CropRejectedError, match=Path(spoiler).name):
            pack_folder(crops, tmp_path / f"out{number}", strict=True)
        (crops / spoiler).unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("format_", FORMATS)
def test_a_source_without_a_usable_crop_leaves_the_list_and_nothing_else(tmp_path: Path, format_: str) -> None:
    source = write_crops(tmp_path / "source", ["query/somebody.jpg"])
    (source / "query" / "00000_c000s0_1.jpg").write_bytes(b"")
    with pytest.raises(NothingToPackError) as caught:
        pack_folder(source, tmp_path / "out", format=format_)
    assert caught.value.num_rejected == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected.csv", "source"]
    assert str(tmp_path / "out.rejected.csv") in str(caught.value)


def test_a_source_without_any_file_points_at_no_list_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "source" / "query").mkdir(parents=True)
    with pytest.raises(NothingToPackError) as caught:
        pack_folder(tmp_path / "source", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert "rejected.csv" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"version": "1.0"},
        {"version": "v1.0.0"},
        {"version": "1.0.0\n"},
        {"version": "01.0.0"},
        {"format": "zip"},
        {"shard_rows": 0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PackConfig(**options)


# --- where it may be written


def test_a_folder_that_holds_something_is_refused_and_stays_as_it_was(crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match="not empty"):
        pack_folder(crops, out)
    assert tree(tmp_path) == before


def test_packing_onto_a_packed_data_set_is_refused(packed: Path, crops: Path) -> None:
    before = tree(packed)
    with pytest.raises(OutputExistsError):
        pack_folder(crops, packed)
    assert tree(packed) == before


def test_a_file_in_the_place_of_the_folder_is_refused(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExistsError):
        pack_folder(crops, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_is_filled(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pack_folder(crops, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(pack_folder(crops, tmp_path / "other"))


def test_folders_above_are_made(crops: Path, tmp_path: Path) -> None:
    assert read_manifest(pack_folder(crops, tmp_path / "a" / "b" / "out")).num_rows == 36


@pytest.mark.parametrize("inside", ["out", "query/out", "."])
def test_a_folder_inside_the_crops_is_refused(crops: Path, inside: str) -> None:
    before = tree(crops)
    with pytest.raises(OutputExistsError):
        pack_folder(crops, crops / inside)
    assert tree(crops) == before


def test_a_folder_inside_the_crops_is_refused_through_a_link_too(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(crops, target_is_directory=True)
    with pytest.raises(OutputExistsError, match="inside"):
        pack_folder(crops, tmp_path / "link" / "out")
    with pytest.raises(OutputExistsError, match="inside"):
        pack_folder(tmp_path / "link", crops / "out")


def test_a_folder_whose_name_begins_like_that_of_the_crops_is_fine(crops: Path, tmp_path: Path) -> None:
    assert read_manifest(pack_folder(crops, tmp_path / "crops-packed")).num_rows == 36


@pytest.mark.parametrize("target", ["nowhere", "empty"])
def test_a_link_as_target_is_filled_or_refused_before_the_work(crops: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / target)
    try:
        pack_folder(crops, tmp_path / "out")
    except OutputExistsError:
        assert (tmp_path / "out").is_symlink()
    else:
        assert read_manifest(tmp_path / "out").num_rows == 36
    assert not list(tmp_path.glob("*.partial"))


def test_the_current_folder_as_target_is_no_crash(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        pack_folder(crops, Path())
    except EntireIdError:
        assert list((tmp_path / "here").iterdir()) == []
    else:
        assert read_manifest(tmp_path / "here").num_rows == 36


def test_a_foreign_folder_in_the_place_of_the_work_is_refused(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError, match=r"out\.partial"):
        pack_folder(crops, tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_foreign_file_in_the_place_of_the_work_is_refused(crops: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"out\.partial"):
        pack_folder(crops, tmp_path / "out")
    assert (tmp_path / "out.partial").read_text() == "years of work"


def test_an_empty_folder_in_the_place_of_the_work_is_no_obstacle(crops: Path, tmp_path: Path) -> None:
    """A run that was killed between making the folder and marking it leaves one."""
    (tmp_path / "out.partial").mkdir()
    pack_folder(crops, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_an_error_on_the_way_leaves_nothing(crops: Path, tmp_path: Path) -> None:
    """Any error: here a source whose reading breaks in the middle, as a broken disk's would not (that is a reason)."""

    class Broken(Wrapped):
        reads = 0

        def read(self, path: str) -> bytes:
            self.reads += 1
            if self.reads == 20:
                raise RuntimeError("out of luck")
            return super().read(path)

    for format_ in FORMATS:
        with pytest.raises(RuntimeError, match="out of luck"):
            pack(Broken(crops), tmp_path / "out", PackConfig(format=format_))
        assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_a_crop_that_cannot_be_read_is_rejected_with_its_reason(crops: Path, tmp_path: Path) -> None:
    class Refusing(Wrapped):
        def read(self, path: str) -> bytes:
            if path.startswith("query/00000_c000"):
                raise OSError(errno.EFBIG, "67,108,865 bytes")
            if path.startswith("query/00000_c001"):
                raise PermissionError(13, "Permission denied", path)
            return super().read(path)

    report = pack(Refusing(crops), tmp_path / "out", PackConfig())
    assert report.rejected == {Reason.TOO_LARGE: 1, Reason.UNREADABLE: 1}
    assert report.manifest.num_rows == 34
    assert [(row["path"], row["detail"]) for row in rejected_rows(tmp_path / "out")] == [
        ("query/00000_c000s0_760487.jpg", "67,108,865 bytes"),
        ("query/00000_c001s0_760487.jpg", "Permission denied"),
    ]


# --- a run that is killed


@pytest.fixture(scope="module")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 1,680 crops."""
    return many_crops(tmp_path_factory.mktemp("large") / "source", people=80, shots=20)


@pytest.fixture(scope="module")
def references(large_source: Path) -> dict[str, dict[str, bytes]]:
    """What an undisturbed run makes of it."""
    folder = large_source.parent
    return {f: tree(pack_folder(large_source, folder / f, format=f, shard_rows=300)) for f in FORMATS}


@pytest.fixture(scope="module")
def steps(large_source: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps an undisturbed run takes."""
    done = run_until(0, large_source, tmp_path_factory.mktemp("counted") / "entire-id", shard_rows=300)
    assert int(done.stdout) > 20, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("moment", [1, 2, 0.5, -6, -5, -4, -3, -2, -1])
def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_succeeds(
    large_source: Path, references: dict, steps: int, tmp_path: Path, moment: float
) -> None:
    """Killed at the first steps, in the middle, and just before the last ones."""
    out = tmp_path / "entire-id"
    step = steps + 1 + int(moment) if moment < 0 else int(moment) if moment >= 1 else int(moment * steps)
    died = run_until(step, large_source, out, shard_rows=300)
    assert died.returncode == -signal.SIGKILL, (died.stdout, died.stderr)
    assert not (tmp_path / "entire-id.rejected.csv").exists()
    if out.exists():  # killed after the rename: it must be whole
        assert moment < 0
        assert tree(out) == references["parquet"]
        shutil.rmtree(out)
    pack_folder(large_source, out, shard_rows=300)
    assert tree(out) == references["parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["entire-id"]


def test_a_run_killed_from_outside_again_and_again_is_harmless(
    large_source: Path, references: dict, tmp_path: Path
) -> None:
    out, format_ = tmp_path / "entire-id", "webdataset"
    command = [sys.executable, "-m", "entire_id", "pack", str(large_source), str(out), "--shard-size", "300"]
    command += ["--format", format_]
    for delay_s in (0.0, 0.1):
        before = _identity(tmp_path / "entire-id.partial")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and _identity(tmp_path / "entire-id.partial") in (None, before):
            time.sleep(0.002)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        if out.exists():  # a quick machine
            assert tree(out) == references[format_]
            shutil.rmtree(out)
    subprocess.run(command, check=True, capture_output=True)
    assert tree(out) == references[format_]
    assert [path.name for path in tmp_path.iterdir()] == ["entire-id"]


def _identity(path: Path) -> int | None:
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return None


# --- a version after another


@pytest.fixture(params=FORMATS)
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> Versions:
    """A source of 24 people and some junk on two continents, and its version 1.0.0."""
    return Versions(tmp_path, request.param)


class Versions:
    """A source that changes, and one data set after the other made from it."""

    def __init__(self, home: Path, format_: str) -> None:
        self.home, self.format = home, format_
        self.source = many_crops(home / "source", people=24, shots=6)
        for number in range(12):
            self.add(f"-1_c00{number % 3}s0_{number}.jpg")
        (self.source / "cameras.csv").write_text("camid,continent\n0,asia\n1,asia\n2,europe\n")
        self.old = pack_folder(self.source, home / "v1.0.0", format=format_, shard_rows=30)
        self._before = tree(self.old)

    def add(self, name: str, folder: str = "bounding_box_test") -> None:
        (self.source / folder / name).write_bytes(image_bytes() + f"{folder}/{name}".encode())

    def pack(self, version: str = "1.1.0", **options: object) -> PackReport:
        """Make the next version and check what holds for every one."""
        report = self.pack_unchecked(version, **options)
        assert tree(self.old) == self._before, "the version before is never written to"
        assert verify(report.folder).problems == ()
        scratch = pack_folder(self.source, self.home / f"scratch-{version}", version=version, format=self.format)
        assert rows_of(report.folder) == rows_of(scratch), "the same rows as without a version before"
        assert packed_images(report.folder) == packed_images(scratch)
        self.check_places(report)
        return report

    def pack_unchecked(self, version: str = "1.1.0", **options: object) -> PackReport:
        settings = {"version": version, "format": self.format, "shard_rows": 30, "previous": self.old} | options
        config = PackConfig(**{"name": "entire-id"} | settings)
        return pack(open_source(self.source), self.home / f"v{version}", config)

    def check_places(self, report: PackReport) -> None:
        """Nobody moves, and a shard of the same rows is the same file."""
        old, new = rows_by_shard(self.old), rows_by_shard(report.folder)
        before, after = homes(self.old), homes(report.folder)
        for who in before.keys() & after.keys():
            assert before[who] == after[who], f"{who} moved"
        newcomers = {after[who] for who in after.keys() - before.keys()}
        assert not newcomers & set(old), "who is new goes into a shard of a new number"
        same = {path for path in old.keys() & new.keys() if old[path] == new[path]}
        assert report.num_kept == len(same)
        for path in same:
            for kind in (path, path.replace("data/", "meta/").replace(".tar", ".parquet")):
                assert (report.folder / kind).read_bytes() == (self.old / kind).read_bytes()

    def touched(self, report: PackReport) -> set[str]:
        """Return the shards, of both versions, that are not in both with the same bytes."""
        one, other = ({e.path: e.sha256 for e in read_manifest(f).files} for f in (self.old, report.folder))
        return {path for path in one.keys() | other.keys() if path[:5] == "data/" and one.get(path) != other.get(path)}

    def shards_of(self, pid: int) -> set[str]:
        """Return the shards of version 1.0.0 that hold somebody of the test part."""
        return {shard.path for shard in read_manifest(self.old).shards if pid in shard.pids}


def rows_of(folder: Path) -> list[tuple]:
    rows = meta_of(folder).drop_columns(["shard", "offset"]).to_pylist()
    return sorted(tuple(row.values()) for row in rows)


def rows_by_shard(folder: Path) -> dict[str, list[tuple]]:
    """Return shard → its rows; the order in which they lie is a matter of the plan."""
    found: dict[str, list[tuple]] = {}
    for row in meta_of(folder).drop_columns(["offset"]).to_pylist():
        found.setdefault(row["shard"], []).append(tuple(row.values()))
    return {path: sorted(rows) for path, rows in found.items()}


def homes(folder: Path) -> dict[tuple, str]:
    """Return the shard of every person of a split and continent, and of every junk crop."""
    found = {}
    for row in meta_of(folder).to_pylist():
        who = row["key"] if row["pid"] == JUNK_PID else row["pid"]
        found[row["key"].partition("/")[0], row["continent"], who] = row["shard"]
    return found


def test_the_next_version_of_the_same_crops_is_made_of_the_same_files(versions: Versions) -> None:
    report = versions.pack()
    manifest, old = report.manifest, read_manifest(versions.old)
    assert report.num_kept == len(manifest.shards) == len(old.shards) > 5
    assert (manifest.version, old.version) == ("1.1.0", "1.0.0")
    assert (manifest.files, manifest.shards) == (old.files, old.shards)
    assert manifest.content_sha256 == old.content_sha256
    for shard in manifest.shards:
        for path in (shard.path, shard.meta_path):
            assert (report.folder / path).samefile(versions.old / path), "linked, not copied"


def test_two_jobs_keep_the_same_files(versions: Versions) -> None:
    versions.add("00001_c001s0_77.jpg")
    one, two = versions.pack("1.1.0"), versions.pack("1.2.0", jobs=2)
    assert one.manifest.files == two.manifest.files
    assert one.num_kept == two.num_kept


def test_without_a_person_only_their_shards_change(versions: Versions) -> None:
    gone = versions.shards_of(7)
    for path in versions.source.glob("*/00007_*"):
        path.unlink()
    report = versions.pack()
    assert versions.touched(report) == gone
    assert len(gone) == 3, "query in Asia, gallery in Asia and in Europe"
    assert all(7 not in shard.pids for shard in report.manifest.shards)


@pytest.mark.parametrize("how", ["gone", "rewritten", "spoilt", "more"])
def test_a_change_of_one_crop_changes_one_shard(versions: Versions, how: str) -> None:
    [home] = {path for path in versions.shards_of(7) if "gallery/europe" in path}
    crop = versions.source / "bounding_box_test" / "00007_c002s0_5.jpg"
    if how == "gone":
        crop.unlink()
    elif how == "rewritten":
        crop.write_bytes(image_bytes(9))
    elif how == "spoilt":
        crop.write_bytes(b"")
    else:
        versions.add("00007_c002s0_99.jpg")
    report = versions.pack()
    assert versions.touched(report) == {home}
    assert report.num_kept == len(report.manifest.shards) - 1
    assert sum(report.rejected.values()) == (how == "spoilt")


def test_a_crop_that_got_another_ending_lies_in_a_shard_under_its_new_name(versions: Versions) -> None:
    """The key leaves the ending out, the image's path does not."""
    [home] = {path for path in versions.shards_of(7) if "gallery/europe" in path}
    crop = versions.source / "bounding_box_test" / "00007_c002s0_5.jpg"
    crop.rename(crop.with_suffix(".jpeg"))
    report = versions.pack_unchecked()  # meta does not tell the two apart
    assert verify(report.folder).problems == ()
    names = [name for _, names, _ in crops_in(report.folder) for name in names]
    assert "00007_c002s0_5.jpeg" in names
    assert "00007_c002s0_5.jpg" not in names
    assert versions.touched(report) == {home}


def test_a_person_may_outgrow_their_shard_and_stays_there(versions: Versions) -> None:
    for number in range(100, 160):
        versions.add(f"00007_c000s0_{number}.jpg")
    [home] = {path for path in versions.shards_of(7) if "gallery/asia" in path}
    report = versions.pack()
    assert versions.touched(report) == {home}
    [shard] = [shard for shard in report.manifest.shards if shard.path == home]
    assert shard.rows > 60


def test_new_people_fill_new_shards(versions: Versions) -> None:
    old = {shard.path for shard in read_manifest(versions.old).shards}
    for pid in range(100, 120):
        for camid in range(3):
            versions.add(f"{pid:05d}_c{camid:03d}s0_1.jpg")
    report = versions.pack()
    new = {shard.path for shard in report.manifest.shards} - old
    assert versions.touched(report) == new
    assert report.num_kept == len(old)
    assert len(new) == 3, "40 crops in Asia, 20 in Europe, 30 a shard"


def test_new_junk_goes_into_a_new_shard_and_old_junk_stays(versions: Versions) -> None:
    old = {shard.path for shard in read_manifest(versions.old).shards}
    versions.add("-1_c000s0_500.jpg")
    report = versions.pack()
    [new] = {shard.path for shard in report.manifest.shards} - old
    assert versions.touched(report) == {new}
    versions.source.joinpath("bounding_box_test", "-1_c000s0_0.jpg").unlink()
    assert len(versions.touched(versions.pack("1.2.0"))) == 2


def test_a_camera_that_moves_takes_its_crops_to_another_continent(versions: Versions) -> None:
    (versions.source / "cameras.csv").write_text("camid,continent\n0,asia\n1,europe\n2,europe\n")
    report = versions.pack()
    europe = [row for row in meta_of(report.folder).to_pylist() if row["continent"] == "europe"]
    assert {row["camid"] for row in europe} == {1, 2}
    assert not any(path.startswith("data/query") for path in versions.touched(report))


def test_a_shard_that_everybody_left_disappears_and_the_others_keep_their_numbers(versions: Versions) -> None:
    shards = [s for s in read_manifest(versions.old).shards if (s.split, s.continent) == ("gallery", "asia")]
    assert len(shards) > 3
    for row in meta_of(versions.old).to_pylist():
        if row["shard"] == shards[1].path:
            name = f"{row['key'].partition('/')[2]}.jpg"
            (versions.source / "bounding_box_test" / name).unlink()
    report = versions.pack()
    paths = {shard.path for shard in report.manifest.shards}
    assert paths == {shard.path for shard in read_manifest(versions.old).shards} - {shards[1].path}
    assert versions.touched(report) == {shards[1].path}
    assert not (report.folder / shards[1].path).exists()


def test_nobody_moves_over_several_versions(versions: Versions) -> None:
    rng = np.random.default_rng(0)
    for minor in range(1, 4):
        for path in rng.permutation(sorted(versions.source.glob("bounding_box_test/0*")))[:5]:
            Path(path).unlink()
        for number in range(6):
            versions.add(f"{rng.integers(20, 40):05d}_c{number % 3:03d}s{minor}_{number}.jpg")
        report = versions.pack(f"1.{minor}.0")
        assert report.num_kept > 0
        versions.old, versions._before = report.folder, tree(report.folder)


def test_files_that_were_rejected_before_are_rejected_again_and_their_shards_are_kept(tmp_path: Path) -> None:
    source = many_crops(tmp_path / "source", people=24, shots=6)
    spoil(source)
    old = go_on(source, tmp_path / "old", shard_rows=30)
    new = go_on(source, tmp_path / "new", shard_rows=30, version="1.1.0", previous=old.folder)
    assert new.num_kept == len(old.manifest.shards)
    assert new.rejected == old.rejected
    assert rejected_rows(new.folder) == rejected_rows(old.folder) != []


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_shard_of_the_version_before_is_not_kept_but_written(versions: Versions, how: str) -> None:
    sound = read_manifest(versions.old)
    damage(next(versions.old.glob("data/gallery/europe-00000.*")), how)
    before = tree(versions.old)
    config = PackConfig("1.1.0", versions.format, shard_rows=30, previous=versions.old)
    report = pack(open_source(versions.source), versions.home / "next", config)
    assert report.manifest.files == sound.files
    assert report.num_kept == len(sound.shards) - 1
    assert verify(report.folder).problems == ()
    assert tree(versions.old) == before


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_meta_file_of_the_version_before_is_written_anew_or_an_error_that_names_it(
    versions: Versions, how: str
) -> None:
    """Who is junk, and where, stands there alone."""
    sound = read_manifest(versions.old)
    path = versions.old / "meta/gallery/europe-00000.parquet"
    damage(path, how)
    before = tree(versions.old)
    config = PackConfig("1.1.0", versions.format, shard_rows=30, previous=versions.old)
    out, told = versions.home / "next", ""
    try:
        pack(open_source(versions.source), out, config)
    except EntireIdError as error:
        told = str(error)
    if told:
        assert path.name in told
        assert not out.exists()
    else:
        assert read_manifest(out).files == sound.files
        assert verify(out).problems == ()
    assert tree(versions.old) == before


def test_the_version_before_may_lie_on_another_disk(versions: Versions, small_disk: Path) -> None:
    resize_disk(small_disk, 64 << 20)
    shutil.copytree(versions.old, small_disk / "old")
    report = versions.pack(previous=small_disk / "old")
    assert report.num_kept == len(report.manifest.shards)
    assert report.manifest.files == read_manifest(versions.old).files


@pytest.mark.parametrize(
    ("options", "what"),
    [
        *(({"version": "1.0.0"}, "version 1.0.0"), ({"version": "0.9.9"}, "version 1.0.0")),
        *(({"format": "webdataset"}, "format"), ({"seed": 1}, "seed")),
    ],
)
def test_a_version_that_cannot_follow_the_one_before_is_refused(
    packed: Path, crops: Path, tmp_path: Path, options: dict, what: str
) -> None:
    before = tree(tmp_path)
    with pytest.raises(PreviousVersionError, match=what) as caught:
        go_on(crops, tmp_path / "next", **{"version": "1.1.0", "previous": packed} | options)
    assert caught.value.path == str(packed)
    assert tree(tmp_path) == before


def test_versions_are_compared_as_numbers(packed: Path, crops: Path, tmp_path: Path) -> None:
    ninth = go_on(crops, tmp_path / "v9", version="1.9.0", previous=packed)
    assert go_on(crops, tmp_path / "v10", version="1.10.0", previous=ninth.folder).num_kept == 4


@pytest.mark.parametrize("previous", ["nowhere", "crops"])
def test_a_version_before_that_is_none_is_refused(crops: Path, tmp_path: Path, previous: str) -> None:
    with pytest.raises(DatasetNotFoundError, match=previous):
        go_on(crops, tmp_path / "next", version="1.1.0", previous=tmp_path / previous)
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_the_version_before_is_never_written_over(packed: Path, crops: Path) -> None:
    before = tree(packed)
    with pytest.raises(OutputExistsError):
        go_on(crops, packed, version="1.1.0", previous=packed)
    assert tree(packed) == before


@pytest.mark.parametrize("event", ["os.link", "os.rename"])
def test_a_run_killed_while_it_links_never_writes_into_the_version_before(versions: Versions, event: str) -> None:
    """The temporary name may be a link to the old file: whoever opens it for writing writes into both."""
    settle()
    out = versions.home / "v1.1.0"
    options = {"version": "1.1.0", "format": versions.format, "shard_rows": 30, "previous": versions.old}
    died = run_until(event, versions.source, out, **options)
    assert died.returncode == -signal.SIGKILL, died.stderr
    for path in versions.source.glob("*/000*"):
        path.write_bytes(image_bytes(1) + path.name.encode() + path.parent.name.encode())
    report = versions.pack()
    assert report.num_kept == 0


def test_a_stopped_version_is_gone_on_with(versions: Versions) -> None:
    versions.add("00007_c002s0_99.jpg")
    settle()
    undisturbed = versions.pack()
    options = {"version": "1.1.0", "format": versions.format, "shard_rows": 30, "previous": versions.old}
    stop_pack(versions.source, versions.home / "stopped", 60, **options)
    report = go_on(versions.source, versions.home / "stopped", **options)
    assert report.num_resumed > 1
    assert report.num_kept == undisturbed.num_kept
    assert tree(report.folder) == tree(undisturbed.folder)


# --- real photographs


@pytest.mark.parametrize("format_", FORMATS)
def test_real_crops_pack_to_their_own_bytes(real_crops: Path, tmp_path: Path, format_: str) -> None:
    folder = pack_folder(real_crops, tmp_path / "entire-id", format=format_)
    totals = read_manifest(folder).splits
    assert {split: total.rows for split, total in totals.items()} == {"query": 24, "gallery": 378}
    meta = meta_of(folder)
    assert 0 in meta["pid"].to_pylist()
    assert 0 in meta["camid"].to_pylist()
    for images, names, labels in crops_in(folder):
        for image, name, key in zip(images, names, labels["key"].to_pylist(), strict=True):
            assert image == (real_crops / FOLDER_OF_SPLIT[key.split("/")[0]] / name).read_bytes()
