"""Packing: what appears, where, with which bytes; and what does not appear when it goes wrong."""

from __future__ import annotations

import csv
import json
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

from entire_id.errors import CropRejectedError, EntireIdError, NothingToPackError, OutputExistsError
from entire_id.records import JUNK_PID, Reason
from entire_id.schema import arrow_schema, meta_columns, shard_columns
from entire_id.shards import parquet, tar
from entire_id.shards.manifest import file_digest, read_manifest
from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source

from builders import CAMERAS, crop_names, image_bytes, pack_folder, write_crops

FORMATS = ["parquet", "webdataset"]
FOLDER_OF_SPLIT = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`, hidden ones too, and every folder as no bytes."""
    return {
        path.relative_to(folder).as_posix(): b"" if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def meta_of(folder: Path) -> pa.Table:
    manifest = read_manifest(folder)
    return pa.concat_tables(pq.read_table(folder / shard.meta_path, partitioning=None) for shard in manifest.shards)


def crops_in(folder: Path):
    """Yield (images, names, labels) of every row group, shard after shard."""
    manifest = read_manifest(folder)
    read = {"parquet": parquet.read_crops, "webdataset": tar.read_crops}[manifest.format]
    for shard in manifest.shards:
        yield from read(folder / shard.path)


def many_crops(folder: Path, people: int, shots: int) -> Path:
    """Write many small files quickly: one picture each, told apart by a number behind its end."""
    picture = image_bytes()
    for split in ("query", "bounding_box_test"):
        (folder / split).mkdir(parents=True)
        for pid in range(people):
            for shot in range(shots if split != "query" else 1):
                name = f"{pid:05d}_c{shot % 3:03d}s0_{shot}.jpg"
                (folder / split / name).write_bytes(picture + f"{split}{pid}/{shot}".encode())
    return folder


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
def test_meta_records_the_row_groups_of_the_shard(tmp_path: Path, format_: str) -> None:
    source = many_crops(tmp_path / "source", people=40, shots=20)
    folder = pack_folder(source, tmp_path / "out", format=format_)
    for shard in read_manifest(folder).shards:
        recorded = json.loads(pq.read_schema(folder / shard.meta_path).metadata[b"row_groups"])
        assert sum(recorded) == shard.rows
        if format_ == "parquet":
            with pq.ParquetFile(folder / shard.path) as file:
                groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
            assert recorded == groups
        if shard.split == "gallery":
            assert len(recorded) > 2
            assert all(128 <= rows < 536 for rows in recorded[:-1])


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

    class Broken:
        def __init__(self) -> None:
            self._source = open_source(crops)
            self.name, self.cameras, self.samples = self._source.name, self._source.cameras, self._source.samples
            self._reads = 0

        def read(self, path: str) -> bytes:
            self._reads += 1
            if self._reads == 20:
                raise RuntimeError("out of luck")
            return self._source.read(path)

    for format_ in FORMATS:
        with pytest.raises(RuntimeError, match="out of luck"):
            pack(Broken(), tmp_path / "out", PackConfig(format=format_))
        assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_a_crop_that_goes_away_or_cannot_be_read_is_rejected_with_its_reason(crops: Path, tmp_path: Path) -> None:
    class Fading:
        def __init__(self) -> None:
            self._source = open_source(crops)
            self.name, self.cameras, self.samples = self._source.name, self._source.cameras, self._source.samples

        def read(self, path: str) -> bytes:
            if path.startswith("query/00000_c000"):
                raise FileNotFoundError(path)
            if path.startswith("query/00000_c001"):
                raise PermissionError(13, "Permission denied", path)
            return self._source.read(path)

    report = pack(Fading(), tmp_path / "out", PackConfig())
    assert report.rejected == {Reason.MISSING: 1, Reason.UNREADABLE: 1}
    assert report.manifest.num_rows == 34


# --- a run that is killed

# Counts every change that Python makes to the folder of the output, and dies just before the given one.
KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from entire_id.shards.pack import PackConfig, pack
from entire_id.sources.layouts import open_source

source, out, format_, last = sys.argv[1:]
home = str(Path(out).parent)
steps = 0

def watch(event, arguments):
    global steps
    if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
        return
    if not str(arguments[0]).startswith(home) or event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    steps += 1
    if steps == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
pack(open_source(Path(source)), Path(out), PackConfig(format=format_, shard_rows=300))
print(steps)
"""


@pytest.fixture(scope="module")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 1,680 crops."""
    return many_crops(tmp_path_factory.mktemp("large") / "source", people=80, shots=20)


@pytest.fixture(scope="module")
def references(large_source: Path) -> dict[str, dict[str, bytes]]:
    """What an undisturbed run makes of it."""
    folder = large_source.parent
    return {f: tree(pack_folder(large_source, folder / f, format=f, shard_rows=300)) for f in FORMATS}


def run_until(step: int, source: Path, out: Path, format_: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED_RUN, str(source), str(out), format_, str(step)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def steps(large_source: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps an undisturbed run takes."""
    done = run_until(0, large_source, tmp_path_factory.mktemp("counted") / "entire-id", "parquet")
    assert int(done.stdout) > 20, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("moment", [1, 2, 0.5, -6, -5, -4, -3, -2, -1])
def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_succeeds(
    large_source: Path, references: dict, steps: int, tmp_path: Path, moment: float
) -> None:
    """Killed at the first steps, in the middle, and just before the last ones."""
    out = tmp_path / "entire-id"
    step = steps + 1 + int(moment) if moment < 0 else int(moment) if moment >= 1 else int(moment * steps)
    died = run_until(step, large_source, out, "parquet")
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
