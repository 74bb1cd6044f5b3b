"""Folders and zips of crops: every file becomes a sample or a rejection, once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.errors import CamerasFileError, EntireIdError, LayoutNotFoundError, SourceError
from entire_id.records import Reason, Rejected, Sample
from entire_id.sources.crops import CropSource, Layout, NameParts, build_sample
from entire_id.sources.entire import LAYOUT

from builders import CAMERAS, crop_names, image_bytes, write_crops, write_zip

GOOD = "00009_c021s0_760487.jpg"


def make(kind: str, tmp_path: Path, names: list[str], cameras: str | None = None, prefix: str = "") -> CropSource:
    """Return a source over empty files: nothing here looks at pixels."""
    entries = {prefix + name: b"" for name in names}
    if cameras is not None:
        entries[f"{prefix}cameras.csv"] = cameras.encode()
    if kind == "zip":
        return CropSource(write_zip(tmp_path / "crops.zip", entries), LAYOUT)
    for name, data in entries.items():
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return CropSource(tmp_path / "crops", LAYOUT)


def outcomes(source) -> dict[str, Sample | Reason]:
    found = [(item.path, item.reason if isinstance(item, Rejected) else item) for item in source.samples()]
    assert len(found) == len(dict(found))
    return dict(found)


KINDS = pytest.mark.parametrize("kind", ["folder", "zip"])


@KINDS
def test_a_name_becomes_a_sample(kind, tmp_path):
    source = make(kind, tmp_path, [f"query/{GOOD}"], CAMERAS)
    (sample,) = source.samples()
    assert sample == Sample("query/", GOOD, "query", 9, 21, 0, 760487, "europe")
    assert (sample.path, sample.key) == (f"query/{GOOD}", "query/00009_c021s0_760487")
    assert [camera.camid for camera in source.cameras] == [0, 1, 21]


@KINDS
def test_each_folder_is_its_split(kind, tmp_path):
    source = make(kind, tmp_path, [f"{folder}/{GOOD}" for folder in LAYOUT.folders])
    assert {(sample.path.partition("/")[0], sample.split) for sample in source.samples()} == {
        ("query", "query"),
        ("bounding_box_test", "gallery"),
        ("bounding_box_train", "train"),
    }
    assert len({sample.key for sample in source.samples()}) == 3  # one stem in three folders


@KINDS
def test_every_kind_of_name_is_a_sample_or_a_rejection(kind, tmp_path):
    expected = {
        f"query/{GOOD}": "query/00009_c021s0_760487",
        "query/00000_c000s0_0.jpg": "query/00000_c000s0_0",
        "query/7_c3s0_9.jpg": "query/7_c3s0_9",
        "query/-1_c001s0_5.jpg": "query/-1_c001s0_5",
        "query/00009_c021s0_1.JPG": "query/00009_c021s0_1",
        "query/00009_c021s0_2.png": "query/00009_c021s0_2",
        "query/00009_c021s0_3.jpeg": "query/00009_c021s0_3",
        f"query/größe/{GOOD}": "query/größe/00009_c021s0_760487",
        f"query/v1.2/a%b/{GOOD}": "query/v1%2E2/a%25b/00009_c021s0_760487",
        f"query/a\nb/{GOOD}": "query/a\nb/00009_c021s0_760487",
        "query/Thumbs.db": Reason.NOT_AN_IMAGE,
        "query/.DS_Store": Reason.NOT_AN_IMAGE,
        "query/00009_c021s0_4": Reason.NOT_AN_IMAGE,
        "query/00009_c021s0_5.bmp": Reason.NOT_AN_IMAGE,
        "query/00009_c021s0_6.jpg.part": Reason.NOT_AN_IMAGE,
        "query/.jpg": Reason.NOT_AN_IMAGE,
        "query/holiday.jpg": Reason.NAME,
        "query/größe.jpg": Reason.NAME,
        "query/._00009_c021s0_7.jpg": Reason.NAME,
        "query/00009_c021s0_8\n.jpg": Reason.NAME,
        "query/00009_c021s0_9.jpg.jpg": Reason.NAME,
        "query/0001_c1s1_001051_00.jpg": Reason.NAME,
        "query/2147483648_c001s0_1.jpg": Reason.NUMBER,
        "query/00001_c2147483648s0_1.jpg": Reason.NUMBER,
        "query/00001_c001s2147483648_1.jpg": Reason.NUMBER,
        "query/00001_c001s0_9223372036854775808.jpg": Reason.NUMBER,
        "query/2147483647_c2147483647s2147483647_9223372036854775807.jpg": (
            "query/2147483647_c2147483647s2147483647_9223372036854775807"
        ),
        GOOD: Reason.OUTSIDE_SPLITS,
        "Thumbs.db": Reason.OUTSIDE_SPLITS,
        f"gt_bbox/{GOOD}": Reason.OUTSIDE_SPLITS,
        f"Query/{GOOD}": Reason.OUTSIDE_SPLITS,
        f"__MACOSX/query/._{GOOD}": Reason.OUTSIDE_SPLITS,
        "query/cameras.csv": Reason.NOT_AN_IMAGE,
    }
    found = outcomes(make(kind, tmp_path, list(expected), CAMERAS))
    assert {path: item.key if isinstance(item, Sample) else item for path, item in found.items()} == expected


def test_huge_numbers_are_rejected_with_the_number_and_its_range(tmp_path):
    (rejected,) = make("folder", tmp_path, ["query/2147483648_c001s0_1.jpg"]).samples()
    assert rejected.detail == "pid 2147483648 is not in -2..2147483647"


def test_a_wrong_name_is_answered_with_a_right_one(tmp_path):
    (rejected,) = make("folder", tmp_path, ["query/holiday.jpg"]).samples()
    assert GOOD in rejected.detail


@KINDS
@pytest.mark.parametrize("prefix", ["ENTIRe-ID/", "a/b/c/", "my.crops/v 1/"])
def test_folders_around_the_layout_are_looked_through(kind, tmp_path, prefix):
    source = make(kind, tmp_path, [f"query/{GOOD}"], CAMERAS, prefix)
    assert outcomes(source) == {
        f"{prefix}query/{GOOD}": Sample(f"{prefix}query/", GOOD, "query", 9, 21, 0, 760487, "europe")
    }
    assert [sample.key for sample in source.samples()] == ["query/00009_c021s0_760487"]


@KINDS
def test_folders_of_a_split_that_repeat_its_name_are_part_of_the_key(kind, tmp_path):
    (sample,) = make(kind, tmp_path, [f"query/query/{GOOD}"]).samples()
    assert (sample.path, sample.key) == (f"query/query/{GOOD}", "query/query/00009_c021s0_760487")


@KINDS
def test_what_lies_beside_a_wrapping_folder_is_rejected(kind, tmp_path):
    names = [f"wrap/query/{GOOD}", f"__MACOSX/wrap/query/._{GOOD}", "readme.txt", f"wrapper/{GOOD}", "wrap.jpg"]
    found = outcomes(make(kind, tmp_path, names))
    assert {path for path, item in found.items() if item is Reason.OUTSIDE_SPLITS} == set(names[1:])
    assert isinstance(found[names[0]], Sample)


@KINDS
def test_two_data_sets_side_by_side_are_refused(kind, tmp_path):
    with pytest.raises(SourceError, match="several data sets") as caught:
        make(kind, tmp_path, [f"first/query/{GOOD}", f"second/query/{GOOD}"])
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)


@KINDS
def test_a_source_without_the_folders_says_what_it_found(kind, tmp_path):
    with pytest.raises(LayoutNotFoundError, match="'train'") as caught:
        make(kind, tmp_path, [f"train/{GOOD}", GOOD])
    assert caught.value.expected == tuple(LAYOUT.folders)


def test_an_empty_folder_is_no_data_set(tmp_path):
    with pytest.raises(LayoutNotFoundError, match="found nothing"):
        CropSource(tmp_path, LAYOUT)


def test_archive_names_that_start_with_a_dot_are_read_like_the_others(tmp_path):
    path = write_zip(tmp_path / "crops.zip", {f"./query/{GOOD}": b"", "./cameras.csv": CAMERAS.encode()})
    found = list(CropSource(path, LAYOUT).samples())
    assert [(item.split, item.key) for item in found if isinstance(item, Sample)] == [
        ("query", "query/00009_c021s0_760487")
    ]


@KINDS
def test_samples_are_those_of_the_names_whatever_the_order_of_the_files(kind, tmp_path):
    names = crop_names()
    forward = make(kind, tmp_path / "f", names) if (tmp_path / "f").mkdir() is None else None
    (tmp_path / "b").mkdir()
    backward = make(kind, tmp_path / "b", names[::-1])
    assert sorted(forward.samples()) == sorted(backward.samples()) == sorted(forward.samples())
    assert len(list(forward.samples())) == len(names)


# ---------------------------------------------------------------- cameras


@KINDS
def test_without_cameras_csv_the_continent_is_unknown(kind, tmp_path):
    source = make(kind, tmp_path, [f"query/{GOOD}"])
    assert source.cameras == ()
    assert [sample.continent for sample in source.samples()] == ["unknown"]


def test_a_camera_that_nobody_describes_is_of_unknown_continent(tmp_path):
    source = make("folder", tmp_path, [f"query/{GOOD}", "query/00009_c005s0_1.jpg"], CAMERAS)
    assert {sample.camid: sample.continent for sample in source.samples()} == {21: "europe", 5: "unknown"}


@KINDS
def test_a_continent_that_can_name_no_config_rejects_the_crops_of_its_cameras_alone(kind, tmp_path):
    cameras = "camid,continent\n0,North America\n1,test\n21,unknown\n"
    names = [f"query/00009_c{camid:03d}s0_1.jpg" for camid in (0, 1, 21)]
    found = outcomes(make(kind, tmp_path, names, cameras))
    assert [item if isinstance(item, Reason) else item.continent for _, item in sorted(found.items())] == [
        "north_america",
        Reason.CONTINENT,
        "unknown",
    ]


def test_another_cameras_csv_may_be_named(tmp_path):
    make("folder", tmp_path, [f"query/{GOOD}"], CAMERAS)
    other = tmp_path / "other.csv"
    other.write_text("camid,continent\n21,africa\n")
    source = CropSource(tmp_path / "crops", LAYOUT, other)
    assert [item.continent for item in source.samples()] == ["africa"]  # and the one beside the crops is no crop


def test_a_named_cameras_csv_makes_a_broken_one_beside_the_crops_harmless(tmp_path):
    write_crops(tmp_path / "crops", [f"query/{GOOD}"])
    (tmp_path / "crops/cameras.csv").write_text("broken")
    other = tmp_path / "other.csv"
    other.write_text(CAMERAS)
    assert len(CropSource(tmp_path / "crops", LAYOUT, other).cameras) == 3


@KINDS
def test_a_broken_cameras_csv_is_an_error_that_says_where(kind, tmp_path):
    with pytest.raises(CamerasFileError, match=r"cameras\.csv': line 2"):
        make(kind, tmp_path, [f"query/{GOOD}"], "camid,continent\nx,asia\n")


def test_a_folder_called_cameras_csv_is_no_crash(tmp_path):
    write_crops(tmp_path / "crops", [f"query/{GOOD}"])
    (tmp_path / "crops/cameras.csv").mkdir()
    try:
        source = CropSource(tmp_path / "crops", LAYOUT)
    except EntireIdError:
        return
    assert source.cameras == ()


def test_a_damaged_cameras_csv_in_an_archive_is_an_error_of_ours(tmp_path):
    path = write_zip(tmp_path / "crops.zip", {"cameras.csv": CAMERAS.encode(), f"query/{GOOD}": b""})
    data = bytearray(path.read_bytes())
    data[30 + len("cameras.csv") + 5] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(EntireIdError):
        CropSource(path, LAYOUT)


def test_a_cameras_csv_that_links_out_of_the_source_is_not_read(tmp_path):
    """DESIGN: no link is trusted. It must not both give the continents and stand among the rejected."""
    write_crops(tmp_path / "crops", [f"query/{GOOD}"])
    (tmp_path / "outside.csv").write_text(CAMERAS)
    (tmp_path / "crops/cameras.csv").symlink_to("../outside.csv")
    try:
        source = CropSource(tmp_path / "crops", LAYOUT)
    except EntireIdError:
        return
    assert source.cameras == ()
    assert outcomes(source)["cameras.csv"] is Reason.LINK


# ---------------------------------------------------------------- links, odd names


def test_links_and_names_that_are_not_utf8_are_rejected_and_links_inside_are_crops(tmp_path):
    root = write_crops(tmp_path / "crops", [f"query/{GOOD}"])
    (root / "query" / os.fsdecode(b"00009_c021s0_1\xff.jpg")).write_bytes(b"")
    (root / "bounding_box_test").mkdir()
    (root / "bounding_box_test" / GOOD).symlink_to(f"../query/{GOOD}")
    (root / "bounding_box_test/00009_c021s0_2.jpg").symlink_to("/etc/hostname")
    (root / "bounding_box_train").symlink_to("query")
    found = outcomes(CropSource(root, LAYOUT))
    assert {path: item if isinstance(item, Reason) else item.split for path, item in found.items()} == {
        f"query/{GOOD}": "query",
        "query/00009_c021s0_1\\xff.jpg": Reason.ENCODING,
        f"bounding_box_test/{GOOD}": "gallery",
        "bounding_box_test/00009_c021s0_2.jpg": Reason.LINK,
        "bounding_box_train": Reason.LINK,
    }


def test_reading_gives_the_bytes_of_folder_and_zip_alike(tmp_path):
    root = write_crops(tmp_path / "crops", crop_names(1))
    archive = shutil.make_archive(str(tmp_path / "crops"), "zip", root)
    sources = CropSource(root, LAYOUT), CropSource(Path(archive), LAYOUT)
    folder, zipped = ({item.path: source.read(item.path).data for item in source.samples()} for source in sources)
    assert folder == zipped
    assert folder["query/00000_c000s0_760487.jpg"] == image_bytes(0)


# ---------------------------------------------------------------- any family, any number


def test_a_new_family_is_folders_and_a_function(tmp_path):
    def parse(stem):
        pid, _, camid = stem.partition("@")
        return NameParts(int(pid), int(camid)) if pid.isdecimal() and camid.isdecimal() else None

    write_crops(tmp_path, ["probe/7@2.png", "probe/x.png"])
    found = CropSource(tmp_path, Layout("mine", {"probe": "query"}, parse, "7@2.png")).samples()
    sample, rejected = sorted(found, key=lambda item: item.path)
    assert sample == Sample("probe/", "7@2.png", "query", 7, 2)
    assert sample.key == "query/7@2"
    assert (rejected.reason, rejected.detail) == (Reason.NAME, "expected a name like 7@2.png")


EDGES = st.sampled_from([-(2**63), -3, -2, -1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30])


@given(*[EDGES | st.integers()] * 4)
def test_numbers_fit_their_columns_or_are_rejected(pid, camid, seq, frame):
    built = build_sample(Sample("q/", "a.jpg", "query", pid, camid, seq, frame), {})
    fits = -2 <= pid < 2**31 and 0 <= camid < 2**31 and -1 <= seq < 2**31 and -1 <= frame < 2**63
    assert isinstance(built, Sample) == fits
    if isinstance(built, Rejected):
        assert (built.path, built.reason) == ("q/a.jpg", Reason.NUMBER)


SEGMENT = st.text(st.sampled_from("ab.%25E é"), min_size=1, max_size=5).filter(lambda name: set(name) != {"."})


@given(st.lists(st.lists(SEGMENT, min_size=1, max_size=3).map("/".join), min_size=2, max_size=2, unique=True))
def test_two_files_have_two_keys_unless_they_differ_in_their_ending_alone(paths):
    first, second = (build_sample(Sample("", path + ".jpg", "query", 1, 1), {}).key for path in paths)
    assert first != second
    assert "." not in first + second
    other_ending = build_sample(Sample("", paths[0] + ".png", "query", 1, 1), {}).key
    assert other_ending == first
