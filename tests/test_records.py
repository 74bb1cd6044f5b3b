"""Records: escaping of keys, paths that may be trusted, how people are written."""

from __future__ import annotations

import os
import tempfile
from dataclasses import FrozenInstanceError

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
    escape_key,
    is_safe_path,
    no_progress,
)

HOSTILE = st.text(st.sampled_from("./\\:%a\0\n~C ") | st.characters(), max_size=20)
PATHS = HOSTILE | st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "C:", "..."]), max_size=6).map("/".join)


def unescape(key: str) -> str:
    return key.replace("%2E", ".").replace("%25", "%")


@given(HOSTILE | st.text(st.sampled_from("%.25E"), max_size=12))
def test_escaped_keys_hold_no_dot_and_can_be_undone(key):
    escaped = escape_key(key)
    assert "." not in escaped
    assert unescape(escaped) == key  # so no two keys meet


@pytest.mark.parametrize(
    ("first", "second"), [("a.b", "a%2Eb"), ("a%b", "a%25b"), ("a%2Eb", "a%252Eb"), ("a.b", "a_b")]
)
def test_look_alike_keys_stay_apart(first, second):
    assert escape_key(first) != escape_key(second)


def test_keys_without_dot_and_percent_are_left_alone():
    assert escape_key("query/sub folder/00009_c021s0_760487") == "query/sub folder/00009_c021s0_760487"


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


@pytest.mark.parametrize("record", [Sample("a.jpg", "query", "query/a", 0, 0), Rejected("a", Reason.EMPTY)])
def test_records_can_be_told_apart_by_value(record):
    assert record in {record}


def test_records_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Sample("a.jpg", "query", "query/a", 0, 0).pid = 1


def test_a_sample_without_numbers_says_so():
    sample = Sample("a.jpg", "query", "query/a", 0, 0)
    assert (sample.seq, sample.frame, sample.continent) == (-1, -1, "unknown")


def test_no_progress_says_nothing(capsys):
    no_progress("packing", 1, 2)
    assert capsys.readouterr() == ("", "")
