"""Records: keys and their escaping, paths that may be trusted, how people are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.records import (
    PART_OF_SPLIT,
    SPLITS,
    Person,
    Reason,
    Rejected,
    Sample,
    is_safe_path,
    no_progress,
    sample_key,
    split_suffix,
)

IN_NAMES = st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
HOSTILE = st.text(st.sampled_from("./\\:%a\0\n~C ") | IN_NAMES, max_size=20)  # of files: bytes that are no text, too
PATHS = HOSTILE | st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "C:", "..."]), max_size=6).map("/".join)


def unescape(key: str) -> str:
    return key.replace("%2E", ".").replace("%25", "%")


@given(HOSTILE | st.text(st.sampled_from("%.25E/"), max_size=12))
def test_keys_hold_no_dot_and_can_be_undone(name):
    key = sample_key("query", name)
    assert "." not in key
    assert unescape(key) == f"query/{split_suffix(name)[0]}"  # so no two names meet but for their endings
    assert unescape(sample_key("query", name + ".jpg")) == f"query/{split_suffix(name + '.jpg')[0]}"


@pytest.mark.parametrize(
    ("first", "second"), [("a.b", "a%2Eb"), ("a%b", "a%25b"), ("a%2Eb", "a%252Eb"), ("a.b", "a_b")]
)
def test_look_alike_keys_stay_apart(first, second):
    assert sample_key("query", f"{first}.jpg") != sample_key("query", f"{second}.jpg")


def test_keys_without_dot_and_percent_are_left_alone():
    assert sample_key("query", "sub folder/00009_c021s0_760487.jpg") == "query/sub folder/00009_c021s0_760487"


def test_the_split_is_part_of_the_key():
    assert len({sample_key(split, "a.jpg") for split in SPLITS}) == len(SPLITS)


@given(PATHS)
def test_an_ending_is_split_off_and_nothing_is_lost(name):
    stem, suffix = split_suffix(name)
    assert stem + suffix == name
    assert suffix == "" or (suffix[0] == "." and len(suffix) > 1 and not {".", "/"} & set(suffix[1:]))
    assert suffix == "" or stem.rpartition("/")[2], "a name of an ending alone has none"


@given(st.lists(st.text(st.sampled_from("ab.%"), min_size=1, max_size=5), min_size=1, max_size=3).map("/".join))
def test_endings_are_those_that_pathlib_sees_where_the_name_does_not_begin_with_a_dot(name):
    last = name.rpartition("/")[2]
    if not last.startswith(".") and not last.endswith("."):
        assert split_suffix(name)[1] == PurePosixPath(name).suffix


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *(("a.jpg", "a"), ("a.b.jpg", "a.b"), ("a", "a"), ("a.", "a."), (".jpg", ".jpg"), ("q/.jpg", "q/.jpg")),
        *(("a.b/c", "a.b/c"), ("a.b/c.png", "a.b/c"), ("..jpg", "."), ("", ""), (".", "."), ("/", "/")),
    ],
)
def test_names_with_and_without_an_ending(name, stem):
    assert split_suffix(name) == (stem, name[len(stem) :])


@given(PATHS)
def test_no_safe_path_leads_out_of_the_folder_that_it_is_joined_to(path):
    if is_safe_path(path):
        root = os.path.realpath(tempfile.gettempdir()) + "/does/not/exist"
        resolved = os.path.realpath(os.path.join(root, path))  # noqa: PTH118
        assert os.path.commonpath([root, resolved]) == root


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/a.jpg", "//a.jpg", "..", "../a.jpg", "a/../../b.jpg", "a/..", "query/../x.jpg"),
        *("a\\b.jpg", "..\\a.jpg", "C:a.jpg", "c:/a.jpg", "C:\\a.jpg", "a\0.jpg", "\\\\host\\a.jpg"),
    ],
)
def test_paths_that_climb_or_mean_something_elsewhere_are_unsafe(path):
    assert not is_safe_path(path)


@pytest.mark.parametrize(
    "path", ["a.jpg", "query/a.jpg", "..a/b..jpg", ".../a.jpg", "./a.jpg", "a//b.jpg", "größe/ä.jpg", "a\nb.jpg"]
)
def test_ordinary_relative_paths_are_safe(path):
    assert is_safe_path(path)


def test_a_person_is_a_part_and_a_pid():
    assert str(Person("test", 17)) == "test/17"
    assert Person("test", 17) != Person("train", 17)


def test_every_split_belongs_to_train_or_test():
    assert {split: PART_OF_SPLIT[split] for split in SPLITS} == {
        "train": "train",
        "val": "train",
        "query": "test",
        "gallery": "test",
    }


def test_reasons_are_written_as_plain_slugs():
    assert [str(reason) for reason in Reason] == [reason.value for reason in Reason]
    assert all(reason.replace("-", "").isalpha() and reason == reason.lower() for reason in Reason)


@pytest.mark.parametrize("record", [Sample("q/", "a.jpg", "query", 0, 0), Rejected("a", Reason.EMPTY)])
def test_records_can_be_told_apart_by_value(record):
    assert record in {record}


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        Sample("", "a.jpg", "query", 0, 0).pid = 1
    with pytest.raises(AttributeError):  # FrozenInstanceError is one
        Rejected("a", Reason.EMPTY).path = "b"


@pytest.mark.parametrize("folder", ["", "bounding_box_test/", "wrap/v1.2/query/"])
def test_a_sample_has_the_path_of_its_folder_and_the_key_of_its_split(folder):
    sample = Sample(folder, "a.b/c.jpg", "gallery", 0, 0)
    assert sample.path == f"{folder}a.b/c.jpg"
    assert sample.key == "gallery/a%2Eb/c"


def test_a_sample_without_numbers_says_so():
    sample = Sample("", "a.jpg", "query", 0, 0)
    assert (sample.seq, sample.frame, sample.continent) == (-1, -1, "unknown")


def test_no_progress_says_nothing(capsys):
    no_progress("packing", 1, 2)
    no_progress("packing", 1, 2, "a note")
    assert capsys.readouterr() == ("", "")
