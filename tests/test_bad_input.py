"""Bad input from end to end: packed rightly, or listed with its reason, and nothing lost between the two."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from entire_id.errors import CropRejectedError, NothingToPackError, OutputExistsError, SourceChangedError
from entire_id.records import Reason
from entire_id.shards.pack import PackConfig, pack
from entire_id.shards.verify import verify
from entire_id.sources.files import MAX_FILE_BYTES
from entire_id.sources.layouts import open_source

from builders import CAMERAS, crop_names, image_bytes, packed_images, rejected_rows, write_crops, write_zip

FORMATS = pytest.mark.parametrize("fmt", ["parquet", "webdataset"])
COMMAND = Path(sys.executable).with_name("entire-id")
PLAIN = "query/00009_c021s0_760487.jpg"  # a crop that is always sound
JPEG, PNG = image_bytes(100), image_bytes(101, kind="PNG")


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


HUGE = claim_size(JPEG, 60_000, 60_000)

# name → bytes, and what becomes of it: its key, or the reason why it is left out
CASES: dict[str, tuple[bytes, str | Reason]] = {
    PLAIN: (JPEG, "query/00009_c021s0_760487"),
    "query/00001_c000s0_1.jpg": (b"", Reason.EMPTY),
    "query/00001_c000s0_2.jpg": (JPEG[: len(JPEG) // 2], Reason.TRUNCATED),
    "query/00001_c000s0_3.jpg": (PNG, "query/00001_c000s0_3"),
    "query/00001_c000s0_4.jpg": (b"no picture\n", Reason.NOT_AN_IMAGE),
    "query/00001_c000s0_5.jpg": (HUGE, Reason.TOO_LARGE),
    "query/00001_c000s0_6.png": (JPEG + b"x", "query/00001_c000s0_6"),
    "query/00001_c000s0_7.jpg": (JPEG + b"trailing", "query/00001_c000s0_7"),
    "query/00001_c000s0_8.png": (PNG[:-3], Reason.TRUNCATED),
    "query/00000_c000s0_0.jpg": (image_bytes(102), "query/00000_c000s0_0"),
    "query/2_c1s0_5.jpg": (image_bytes(103), "query/2_c1s0_5"),
    "query/-1_c001s0_9.jpg": (image_bytes(104), "query/-1_c001s0_9"),
    "query/2147483648_c001s0_9.jpg": (JPEG, Reason.NUMBER),
    "query/00001_c001s0_99999999999999999999.jpg": (JPEG, Reason.NUMBER),
    "query/0001_c1s1_001051_00.jpg": (JPEG, Reason.NAME),
    "query/Zürich 한국.jpg": (JPEG, Reason.NAME),
    "query/Zürich.v1 한국/00003_c001s0_1.jpg": (image_bytes(105), "query/Zürich%2Ev1 한국/00003_c001s0_1"),
    "query/50%25/00003_c001s0_2.jpg": (image_bytes(106), "query/50%2525/00003_c001s0_2"),
    "query/new\nline/00003_c001s0_3.jpg": (image_bytes(107), "query/new\nline/00003_c001s0_3"),
    "query/00003_c001s0_4\n.jpg": (JPEG, Reason.NAME),
    "query/00004_c001s0_1.jpg": (image_bytes(108), "query/00004_c001s0_1"),
    "query/00004_c001s0_1.png": (PNG, Reason.DUPLICATE_KEY),
    "bounding_box_test/00004_c001s0_1.jpg": (image_bytes(109), "gallery/00004_c001s0_1"),
    f"query/{'deep/' * 30}00004_c001s0_2.jpg": (image_bytes(110), f"query/{'deep/' * 30}00004_c001s0_2"),
    "query/Thumbs.db": (b"\xd0\xcf\x11\xe0", Reason.NOT_AN_IMAGE),
    "bounding_box_test/.DS_Store": (b"\0\0\0\1Bud1", Reason.NOT_AN_IMAGE),
    "README.txt": (b"hello", Reason.OUTSIDE_SPLITS),
    "00009_c021s0_1.jpg": (JPEG, Reason.OUTSIDE_SPLITS),
    "old/query/00009_c021s0_1.jpg": (JPEG, Reason.OUTSIDE_SPLITS),
    "__MACOSX/query/._00009_c021s0_760487.jpg": (b"\0\5\x16\7", Reason.OUTSIDE_SPLITS),
}


def write_cases(folder: Path, cases: dict[str, tuple[bytes, str | Reason]]) -> Path:
    for name, (data, _) in cases.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pack_and_check(source: Path, out: Path, num_files: int, fmt: str = "parquet") -> dict[str, str]:
    """Pack, check that no file is lost and that the result is sound, and return path → reason of those left out.

    Args:
        source: what to pack.
        out: where to.
        num_files: files in the source, without cameras.csv.
        fmt: parquet or webdataset.
    """
    report = pack(open_source(source), out, PackConfig(format=fmt))
    rejected = rejected_rows(out)
    assert report.manifest.num_rows + len(rejected) == num_files
    assert Counter(row["reason"] for row in rejected) == report.rejected
    assert (report.rejected_csv is None) == (not rejected)
    assert verify(out).problems == ()
    assert {path.name for path in out.parent.glob(out.name + "*")} <= {out.name, out.name + ".rejected.csv"}
    assert len({row["path"] for row in rejected}) == len(rejected)
    return {row["path"]: row["reason"] for row in rejected}


def expected(cases) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return key → bytes of those to be packed, and path → reason of the others."""
    kept = {fate: data for data, fate in cases.values() if not isinstance(fate, Reason)}
    return kept, {name: str(fate) for name, (_, fate) in cases.items() if isinstance(fate, Reason)}


# ---------------------------------------------------------------- everything at once


@FORMATS
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_every_file_is_packed_unchanged_or_listed_with_its_reason(tmp_path, kind, fmt):
    if kind == "folder":
        source = write_cases(tmp_path / "crops", CASES)
        (source / "cameras.csv").write_text(CAMERAS)
    else:
        entries = {name: data for name, (data, _) in CASES.items()} | {"cameras.csv": CAMERAS.encode()}
        source = write_zip(tmp_path / "crops.zip", entries)
    kept, left_out = expected(CASES)
    assert pack_and_check(source, tmp_path / "entire-id", len(CASES), fmt) == left_out
    assert packed_images(tmp_path / "entire-id") == kept


def test_a_folder_and_a_zip_of_it_give_the_same_bytes(tmp_path):
    source = write_cases(tmp_path / "crops", CASES)
    (source / "cameras.csv").write_text(CAMERAS)
    archive = shutil.make_archive(str(tmp_path / "crops"), "zip", source)
    for path, out in ((source, tmp_path / "a/x"), (Path(archive), tmp_path / "b/x")):
        pack(open_source(path), out, PackConfig())
    trees = [
        {path.relative_to(tmp_path / top): path.read_bytes() for path in (tmp_path / top).rglob("*") if path.is_file()}
        for top in ("a", "b")
    ]
    assert set(trees[0]) == set(trees[1])
    listings = [sorted(tree.pop(Path("x.rejected.csv")).splitlines()) for tree in trees]
    assert listings[0] == listings[1]
    assert trees[0] == trees[1]


@FORMATS
def test_awkward_names_and_formats_load_with_plain_datasets(tmp_path, fmt):
    source = write_cases(tmp_path / "crops", CASES)
    out = tmp_path / "entire-id"
    pack_and_check(source, out, len(CASES), fmt)
    rows = list(datasets.load_dataset(str(out), split="query", cache_dir=str(tmp_path / "cache")))
    labels = [row["json"] if fmt == "webdataset" else row for row in rows]
    images = [row["jpg" if fmt == "webdataset" else "image"] for row in rows]
    sizes = {row["key"]: image.size for row, image in zip(labels, images, strict=True)}
    kept = {key: data for key, data in expected(CASES)[0].items() if key.startswith("query/")}
    assert sizes == {key: Image.open(io.BytesIO(data)).size for key, data in kept.items()}
    numbers = {row["key"]: (row["pid"], row["camid"]) for row in labels}
    assert numbers["query/00000_c000s0_0"] == (0, 0)
    assert numbers["query/-1_c001s0_9"] == (-1, 1)
    assert numbers["query/00009_c021s0_760487"] == (9, 21)


@FORMATS
def test_person_0_camera_0_and_junk_keep_their_numbers(tmp_path, fmt):
    source = write_crops(tmp_path / "crops", ["query/00000_c000s0_0.jpg", "query/-1_c000s0_1.jpg", PLAIN])
    out = tmp_path / "entire-id"
    assert pack_and_check(source, out, 3, fmt) == {}
    (meta,) = out.glob("meta/query/*.parquet")
    rows = {row["key"]: row for row in pq.read_table(meta, partitioning=None).to_pylist()}
    assert {(row["pid"], row["camid"], row["frame"]) for row in rows.values()} == {
        (0, 0, 0),
        (-1, 0, 1),
        (9, 21, 760487),
    }
    totals = json.loads((out / "manifest.json").read_text())["totals"]["query"]
    assert (totals["rows"], totals["people"]) == (3, 2)  # junk is nobody


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(JPEG) + 8))
def test_a_jpeg_cut_anywhere_is_never_packed(tmp_path, stop):
    shutil.rmtree(tmp_path / "cut", ignore_errors=True)
    data = (JPEG + b"trailing")[:stop]
    source = write_cases(tmp_path / "cut/crops", {PLAIN: (JPEG, ""), "query/00001_c000s0_2.jpg": (data, "")})
    left_out = pack_and_check(source, tmp_path / "cut/out", 2)
    if stop < len(JPEG):
        assert left_out.keys() == {"query/00001_c000s0_2.jpg"}
        assert set(left_out.values()) <= {"empty", "truncated", "not-an-image"}
    else:
        assert packed_images(tmp_path / "cut/out")["query/00001_c000s0_2"] == data


# ---------------------------------------------------------------- what only a folder holds


@FORMATS
def test_links_pipes_and_names_that_are_not_utf8(tmp_path, fmt):
    root = write_crops(tmp_path / "crops", [PLAIN])
    outside = write_crops(tmp_path / "outside", [PLAIN])
    query = root / "query"
    links = {
        "query/00001_c001s0_1.jpg": PLAIN.removeprefix("query/"),
        "query/00001_c001s0_2.jpg": outside / PLAIN,
        "query/00001_c001s0_3.jpg": "../../outside/" + PLAIN,
        "query/00001_c001s0_4.jpg": "nothing",
        "query/00001_c001s0_5.jpg": ".",
        "query/linked": outside / "query",
        "bounding_box_test": "query",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(query / "00001_c001s0_6.jpg")
    (query / os.fsdecode(b"00001_c001s0_7\xff.jpg")).write_bytes(JPEG)
    left_out = pack_and_check(root, tmp_path / "entire-id", len(links) + 3, fmt)
    assert left_out == {
        **dict.fromkeys([name for name in links if name != "query/00001_c001s0_1.jpg"], "link"),
        "query/00001_c001s0_6.jpg": "not-an-image",
        "query/00001_c001s0_7\\xff.jpg": "encoding",
    }
    assert packed_images(tmp_path / "entire-id")["query/00001_c001s0_1"] == (root / PLAIN).read_bytes()


def test_files_in_a_folder_whose_name_is_not_utf8_are_all_counted(tmp_path):
    root = write_crops(tmp_path / "crops", [PLAIN])
    folder = root / "query" / os.fsdecode(b"cam\xff")
    write_crops(folder, ["00001_c001s0_1.jpg", "00001_c001s0_2.jpg", "below/00001_c001s0_3.jpg"])
    assert set(pack_and_check(root, tmp_path / "entire-id", 4).values()) == {"encoding"}


def test_a_file_larger_than_any_crop_is_too_large(tmp_path):
    root = write_crops(tmp_path / "crops", [PLAIN])
    with (root / "query/00001_c001s0_1.jpg").open("wb") as file:
        file.write(JPEG)
        file.truncate(MAX_FILE_BYTES + 1)
    assert pack_and_check(root, tmp_path / "entire-id", 2) == {"query/00001_c001s0_1.jpg": "too-large"}


def test_a_file_that_goes_away_between_listing_and_reading_stops_the_run_and_the_next_goes_on(tmp_path):
    gallery = "bounding_box_test/00001_c001s0_1.jpg"
    root = write_crops(tmp_path / "crops", [PLAIN, gallery])

    def take_away(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done == 1:  # the query is written, the gallery comes next
            (root / gallery).unlink()

    time.sleep(0.2)  # what is younger than the clock is exact is never taken for done
    with pytest.raises(SourceChangedError, match=f"'{gallery}': vanished") as caught:
        pack(open_source(root), tmp_path / "entire-id", PackConfig(), take_away)
    assert caught.value.path == gallery
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "entire-id.partial"]
    report = pack(open_source(root), tmp_path / "entire-id", PackConfig())
    assert report.num_resumed == 1
    assert list(report.manifest.splits) == ["query"]
    assert rejected_rows(tmp_path / "entire-id") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "entire-id"]


# ---------------------------------------------------------------- what only a zip holds


def link_entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@FORMATS
def test_hostile_entries_of_a_zip(tmp_path, fmt):
    path = tmp_path / "crops.zip"
    hostile = {
        "../query/00001_c001s0_1.jpg": "unsafe-path",
        "query/../../00001_c001s0_2.jpg": "unsafe-path",
        "/query/00001_c001s0_3.jpg": "unsafe-path",
        "C:/query/00001_c001s0_4.jpg": "unsafe-path",
        "query\\00001_c001s0_5.jpg": "unsafe-path",
        "..\\00001_c001s0_6.jpg": "unsafe-path",
        "query/00001_c001s0_7.jpg": "link",
        "query/00001_c001s0_8.jpg": "empty",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(PLAIN, JPEG)
        archive.writestr("query/", b"")
        for name, reason in hostile.items():
            if reason == "link":
                archive.writestr(link_entry(name), "/etc/hostname")
            else:
                archive.writestr(name, b"" if reason == "empty" else JPEG)
    assert pack_and_check(path, tmp_path / "entire-id", len(hostile) + 1, fmt) == hostile
    assert packed_images(tmp_path / "entire-id") == {"query/00009_c021s0_760487": JPEG}
    assert {path.name for path in tmp_path.iterdir()} == {"crops.zip", "entire-id", "entire-id.rejected.csv"}


def flip(data: bytearray, start: int, stop: int) -> None:
    for position in range(start, stop):
        data[position] ^= 0x5A


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_is_listed_and_the_others_are_packed(tmp_path, method):
    names = [PLAIN, "query/00001_c001s0_1.jpg", "query/00001_c001s0_2.jpg"]
    path = write_zip(tmp_path / "crops.zip", dict.fromkeys(names, JPEG), method)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(names[1])
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(names[1])
    flip(data, start + info.compress_size // 2, start + info.compress_size)
    path.write_bytes(data)
    assert pack_and_check(path, tmp_path / "entire-id", 3) == {names[1]: "unreadable"}


def test_an_encrypted_entry_is_listed_and_the_others_are_packed(tmp_path):
    names = [PLAIN, "query/00001_c001s0_1.jpg"]
    path = write_zip(tmp_path / "crops.zip", dict.fromkeys(names, JPEG))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04", 4) + 6] |= 1
    data[data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4) + 8] |= 1
    path.write_bytes(data)
    assert pack_and_check(path, tmp_path / "entire-id", 2) == {names[1]: "unreadable"}


def test_a_bomb_in_a_zip_is_too_large(tmp_path):
    path = write_zip(tmp_path / "crops.zip", {PLAIN: JPEG, "query/00001_c001s0_1.jpg": bytes(MAX_FILE_BYTES + 1)})
    assert pack_and_check(path, tmp_path / "entire-id", 2) == {"query/00001_c001s0_1.jpg": "too-large"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_in_a_zip_is_packed_once_with_the_bytes_of_the_first(tmp_path):
    with zipfile.ZipFile(tmp_path / "crops.zip", "w") as archive:
        archive.writestr(PLAIN, JPEG)
        archive.writestr(PLAIN, PNG)
    report = pack(open_source(tmp_path / "crops.zip"), tmp_path / "entire-id", PackConfig())
    assert report.rejected == {Reason.DUPLICATE_KEY: 1}
    assert packed_images(tmp_path / "entire-id") == {"query/00009_c021s0_760487": JPEG}


def test_a_zip_with_a_wrapping_folder_and_what_a_mac_adds(tmp_path):
    entries = {f"ENTIRe-ID/{name}": image_bytes(number) for number, name in enumerate(crop_names(2))}
    mac = {f"__MACOSX/ENTIRe-ID/{Path(name).parent}/._{Path(name).name}": b"\0\5\x16\7" for name in crop_names(1)}
    mac |= {"__MACOSX/._ENTIRe-ID": b"\0", "ENTIRe-ID/.DS_Store": b"\0"}
    path = write_zip(tmp_path / "crops.zip", entries | mac | {"ENTIRe-ID/cameras.csv": CAMERAS.encode()})
    left_out = pack_and_check(path, tmp_path / "entire-id", len(entries) + len(mac))
    assert left_out == dict.fromkeys(mac, "outside-splits")
    assert {path.name for path in (tmp_path / "entire-id").glob("data/*/*")} == {
        "asia-00000.parquet",
        "europe-00000.parquet",
    }


# ---------------------------------------------------------------- continents


@FORMATS
def test_continents_are_slugged_or_their_crops_rejected(tmp_path, fmt):
    names = [f"{split}/00001_c{camid:03d}s0_1.jpg" for split in ("query", "bounding_box_test") for camid in range(4)]
    root = write_crops(tmp_path / "crops", names)
    (root / "cameras.csv").write_text("camid,continent,scene\n0,North America,park\n1,test,x\n2,asia,y\n7,meta,z\n")
    out = tmp_path / "entire-id"
    left_out = pack_and_check(root, out, len(names), fmt)
    assert left_out == {name: "continent" for name in names if "c001" in name}
    assert {path.name.partition("-")[0] for path in out.glob("data/*/*")} == {"north_america", "asia", "unknown"}
    assert (out / "cameras.csv").read_text() == ("camid,continent,scene\n0,north_america,park\n2,asia,y\n3,unknown,\n")


def test_cameras_csv_never_contradicts_the_rows(tmp_path):
    """A table may name continents itself: what cameras.csv says of a camera must be what its rows say, or nothing."""
    folder = write_crops(tmp_path / "mine", ["1.jpg", "2.jpg"])
    (folder / "t.csv").write_text(
        "path,pid,camid,split,continent\n1.jpg,1,0,query,asia\n2.jpg,1,1,gallery,North America\n"
    )
    report = pack(open_source(folder / "t.csv"), tmp_path / "entire-id", PackConfig())
    lines = (tmp_path / "entire-id/cameras.csv").read_text().splitlines()[1:]
    described = dict(line.split(",")[:2] for line in lines)
    assert report.manifest.continents == ("asia", "north_america")
    assert described.items() <= {"0": "asia", "1": "north_america"}.items()


def test_crops_whose_table_names_the_continent_are_not_reported_as_undescribed(tmp_path):
    folder = write_crops(tmp_path / "mine", ["1.jpg"])
    (folder / "t.csv").write_text("path,pid,camid,split,continent\n1.jpg,1,0,query,asia\n")
    report = pack(open_source(folder / "t.csv"), tmp_path / "entire-id", PackConfig())
    assert report.cameras_undescribed == ()  # the command would say: continent is 'unknown' for 1 cameras


# ---------------------------------------------------------------- tables


@FORMATS
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_row_of_a_table_is_packed_or_listed(tmp_path, kind, fmt):
    folder = write_crops(tmp_path / "mine", ["a/1.jpg", "a/1.png", "a/2.jpg", "größe.v2/3.jpg"])
    (folder / "a/empty.jpg").touch()
    (folder / "a/no-ending").write_bytes(PNG)
    rows = [
        ("a/1.jpg", "3", "query", None),
        ("a/1.jpg", "3", "gallery", None),  # one picture in two splits: two keys
        ("a/1.png", "3", "query", "duplicate-key"),
        ("a/2.jpg", "0", "query", None),
        ("größe.v2/3.jpg", "-1", "gallery", None),
        ("a/no-ending", "4", "gallery", None),
        ("a/empty.jpg", "4", "gallery", "empty"),
        ("a/gone.jpg", "4", "gallery", "missing"),
        ("../x.jpg", "4", "gallery", "unsafe-path"),
        ("/etc/hostname", "4", "gallery", "unsafe-path"),
        ("table.csv", "4", "gallery", "not-an-image" if kind == "csv" else "missing"),
        ("größe.v2/3.jpg ", "1.5", "gallery", "missing"),
        ("./a/2.jpg", "1.5", "gallery", "number"),
    ]
    columns = {"path": [r[0] for r in rows], "pid": [r[1] for r in rows], "split": [r[2] for r in rows]}
    columns["camid"] = ["0"] * len(rows)
    if kind == "csv":
        lines = [",".join(columns), *(",".join(values) for values in zip(*columns.values(), strict=True))]
        (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    else:
        pq.write_table(pa.table(columns), folder / "table.parquet")
    left_out = pack_and_check(folder / f"table.{kind}", tmp_path / "entire-id", len(rows), fmt)
    assert left_out == {path.removeprefix("./"): reason for path, _, _, reason in rows if reason}
    assert packed_images(tmp_path / "entire-id").keys() == {
        "query/a/1",
        "gallery/a/1",
        "query/a/2",
        "gallery/größe%2Ev2/3",
        "gallery/a/no-ending",
    }


def test_the_same_row_twice_is_packed_once(tmp_path):
    folder = write_crops(tmp_path / "mine", ["1.jpg"])
    (folder / "t.csv").write_text("path,pid,camid,split\n" + "1.jpg,1,0,query\n" * 3)
    report = pack(open_source(folder / "t.csv"), tmp_path / "entire-id", PackConfig())
    assert report.manifest.num_rows == 1
    assert report.rejected == {Reason.DUPLICATE_KEY: 2}


@pytest.mark.parametrize("text", ["path,pid,camid,split\n", "path,pid,camid,split\n\n\n"])
def test_an_empty_table_is_nothing_to_pack_and_names_no_list_that_is_not_there(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(NothingToPackError) as caught:
        pack(open_source(tmp_path / "t.csv"), tmp_path / "out", PackConfig())
    assert caught.value.num_rejected == 0
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv"}
    assert "rejected.csv" not in str(caught.value)


# ---------------------------------------------------------------- nothing left, strict, what is in the way


def test_when_all_is_rejected_the_list_stays_and_no_folder_appears(tmp_path):
    root = write_crops(tmp_path / "crops", ["query/holiday.jpg"])
    (root / "query/00001_c001s0_1.jpg").touch()
    with pytest.raises(NothingToPackError, match="2 files, all rejected") as caught:
        pack(open_source(root), tmp_path / "out", PackConfig())
    assert "out.rejected.csv" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"crops", "out.rejected.csv"}
    assert {row["path"]: row["reason"] for row in rejected_rows(tmp_path / "out")} == {
        "query/holiday.jpg": "name",
        "query/00001_c001s0_1.jpg": "empty",
    }


@pytest.mark.parametrize("name", [name for name, (_, fate) in CASES.items() if isinstance(fate, Reason)])
def test_strict_stops_at_the_first_and_leaves_nothing_behind(tmp_path, name):
    cases = {PLAIN: CASES[PLAIN], name: CASES[name]}
    if CASES[name][1] is Reason.DUPLICATE_KEY:
        cases[name.replace(".png", ".jpg")] = CASES[name.replace(".png", ".jpg")]
    root = write_cases(tmp_path / "crops", cases)
    with pytest.raises(CropRejectedError) as caught:
        pack(open_source(root), tmp_path / "out", PackConfig(strict=True))
    assert (caught.value.path, caught.value.reason) == (name, str(CASES[name][1]))
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_strict_packs_what_is_sound(tmp_path):
    root = write_crops(tmp_path / "crops", crop_names(1))
    (root / "cameras.csv").write_text(CAMERAS)
    assert pack(open_source(root), tmp_path / "out", PackConfig(strict=True)).rejected == {}


@pytest.mark.parametrize("out", ["file", "full", "crops", "crops/out", "crops/query/deep/out"])
def test_an_output_in_the_way_is_refused_and_left_as_it_was(tmp_path, out):
    root = write_crops(tmp_path / "crops", crop_names(1))
    (tmp_path / "file").write_text("mine")
    write_crops(tmp_path / "full", ["mine.jpg"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError):
        pack(open_source(root), tmp_path / out, PackConfig())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- the installed command


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_the_command_packs_what_it_can_and_says_what_it_could_not(tmp_path):
    root = write_cases(tmp_path / "crops", CASES)
    done = run("pack", root, tmp_path / "entire-id", "--json")
    assert done.returncode == 0, done.stderr
    kept, left_out = expected(CASES)
    told = json.loads(done.stdout)
    assert sum(split["rows"] for split in told["splits"].values()) == len(kept)
    assert told["rejected"] == Counter(left_out.values())
    assert f"rejected {len(left_out)} files" in done.stderr
    assert "entire-id.rejected.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_with_strict_exits_1_and_names_the_file(tmp_path):
    root = write_cases(tmp_path / "crops", {PLAIN: (JPEG, ""), "query/00001_c001s0_1.jpg": (JPEG[:-9], "")})
    done = run("pack", root, tmp_path / "entire-id", "--strict")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'query/00001_c001s0_1.jpg': rejected: truncated")
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_the_command_says_in_one_sentence_what_it_cannot_read(tmp_path):
    """Several bad sources, one process each: exit 1, one line that begins with `error:`, no traceback."""
    write_crops(tmp_path / "crops", [PLAIN])
    (tmp_path / "crops/cameras.csv").write_text("camid,continent\n1,asia\n1,asia\n")
    (tmp_path / "t.csv").write_text("path,pid\nx,1\n")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    for source, part in {
        "crops": "camera 1 stands there twice",
        "t.csv": "no column camid, split",
        "broken.zip": "neither a folder",
    }.items():
        done = run("pack", tmp_path / source, tmp_path / "out")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr.startswith("error: ")
        assert part in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_warns_before_it_rejects_the_crops_of_a_camera(tmp_path):
    root = write_crops(tmp_path / "crops", [PLAIN, "query/00001_c001s0_1.jpg"])
    (root / "cameras.csv").write_text("camid,continent\n1,test\n21,asia\n")
    done = run("pack", root, tmp_path / "out")
    assert done.returncode == 0
    assert "camera 1 a continent that cannot name a config" in done.stderr
    assert "rejected 1 files (1 continent)" in done.stderr


def test_the_command_refuses_bad_usage_with_exit_2(tmp_path):
    done = run("pack", tmp_path, tmp_path / "out", "--version", "v1")
    assert done.returncode == 2
    assert "1.2.0" in done.stderr
