"""ENTIRe-ID's own names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.sources.crops import NameParts
from entire_id.sources.entire import LAYOUT, parse_name

NUMBERS = st.integers(0, 10**19 - 1)


def test_the_camera_is_the_whole_number():
    # The trap that every other reader falls into. Torchreid, fast-reid, TransReID and CLIP-ReID read Market-1501 with
    # `([-\d]+)_c(\d)`: one digit for the camera. Of c021 that takes the first digit, 0, and so it does of c001 to c099.
    # Either `assert 1 <= camid` fails, or every crop has one camera; then each gallery crop of a query's person counts
    # as "same camera" and is dropped, no query keeps a positive, and evaluation dies with
    # "all query identities do not appear in gallery".
    name = "00009_c021s0_760487.jpg"
    usual = re.compile(r"([-\d]+)_c(\d)")
    assert usual.search(name).groups() == ("00009", "0")
    names = [f"00009_c{camid:03d}s0_760487.jpg" for camid in range(37)]
    assert {usual.search(name).group(2) for name in names} == {"0"}

    assert parse_name("00009_c021s0_760487") == NameParts(pid=9, camid=21, seq=0, frame=760487)
    assert [parse_name(name.removesuffix(".jpg")).camid for name in names] == list(range(37))


def test_people_whose_numbers_differ_in_the_last_digit_alone_stay_apart():
    # Readers that take the first four characters of the name merge 00000 to 00009.
    assert [parse_name(f"{pid:05d}_c001s0_1").pid for pid in range(10)] == list(range(10))


@given(st.just(-1) | NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_every_number_goes_through_a_name_and_back(pid, camid, seq, frame):
    # Padding is as in the data set, and never decides: longer numbers are read whole too.
    stem = f"{pid if pid < 0 else format(pid, '05d')}_c{camid:03d}s{seq}_{frame}"
    assert parse_name(stem) == (pid, camid, seq, frame)


@given(st.text(st.sampled_from("0123456789_csab-. \n"), max_size=24))
def test_what_is_read_is_the_whole_name(stem):
    numbers = parse_name(stem)
    if numbers is not None:
        pid, camid, seq, frame = numbers
        pattern = rf"{pid if pid < 0 else f'0*{pid}'}_c0*{camid}s0*{seq}_0*{frame}"
        assert re.fullmatch(pattern, stem)


@pytest.mark.parametrize(
    ("stem", "numbers"),
    [
        ("00000_c000s0_0", (0, 0, 0, 0)),  # person 0 and camera 0 exist
        ("9_c21s0_7", (9, 21, 0, 7)),  # nothing padded
        ("00009_c021s12_000007", (9, 21, 12, 7)),  # frame padded
        ("-1_c001s0_5", (-1, 1, 0, 5)),  # junk
        ("123456_c0371s0_12345678901", (123456, 371, 0, 12345678901)),  # wider than usual
    ],
)
def test_names_of_the_family(stem, numbers):
    assert parse_name(stem) == numbers


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "Thumbs",
        "._00009_c021s0_760487",
        "00009_c021s0_760487 ",
        " 00009_c021s0_760487",
        "00009_c021s0_760487\n",
        "00009_c021s0_760487 (1)",
        "00009_c021s0_760487.jpg",
        "x00009_c021s0_760487",
        "00009_C021s0_760487",
        "00009_c021_760487",
        "00009_c021s0_",
        "00009_c021s0",
        "_c021s0_760487",
        "-2_c021s0_760487",
        "-01_c021s0_760487",
        "+9_c021s0_760487",
        "00009_c-1s0_760487",
        "00009_c021s0_-5",
        "00009_c021s0_76.5",
        "00009_c021s0_1e5",
        "0x9_c021s0_760487",
        "0001_c1s1_001051_00",  # Market-1501, with a box number
        "0005_c2_f0046985",  # DukeMTMC
        "٠٠٠٠٩_c٠٢١s٠_٧٦",  # digits to Python, but of another script
        "００００９_c021s0_7",
        "00009_c021s0_7²",
        "1" * 301 + "_c021s0_1",
    ],
)
def test_names_of_no_or_another_family(stem):
    assert parse_name(stem) is None


def test_the_example_of_the_layout_is_a_name_of_the_layout():
    assert LAYOUT.parse_name(LAYOUT.example.removesuffix(".jpg")) == (9, 21, 0, 760487)


def test_the_folders_are_the_official_ones():
    assert LAYOUT.folders == {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
