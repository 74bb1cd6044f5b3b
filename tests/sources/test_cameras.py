"""`cameras.csv`, as owners write it by hand and as spreadsheets export it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.errors import CamerasFileError, SourceError
from entire_id.records import Camera
from entire_id.schema import RESERVED_CONFIGS
from entire_id.sources.cameras import continent_slug, parse_cameras, read_cameras


def parse(text: str) -> dict[int, str | None]:
    return {camera.camid: camera.continent for camera in parse_cameras(text.encode(), "cameras.csv")}


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("asia", "asia"),
        ("Asia", "asia"),
        ("North America", "north_america"),
        ("  North   America ", "north_america"),
        ("north-america", "north_america"),
        ("NORTH_AMERICA", "north_america"),
        ("Amérique", "amerique"),
        ("asia2", "asia2"),
        ("unknown", "unknown"),
        ("testing", "testing"),
        ("train", "train"),
    ],
)
def test_continents_become_config_names(name, slug):
    assert continent_slug(name) == slug


@pytest.mark.parametrize(
    "name",
    [
        *("default", "test", "meta"),
        *("Test", " TEST ", "Meta", "Défault"),
        *("", " ", "7", "7 seas", "_asia", "asia/europe", "../asia", "asia.europe", "asia,europe", "*", "亚洲", "a\0b"),
    ],
)
def test_continents_that_can_name_no_config_are_refused(name):
    assert continent_slug(name) is None


@given(st.text(max_size=16))
def test_a_slug_is_safe_as_a_config_and_a_file_name_and_its_own_slug(name):
    slug = continent_slug(name)
    if slug is not None:
        assert re.fullmatch("[a-z][a-z0-9_]*", slug)
        assert slug not in RESERVED_CONFIGS
        assert continent_slug(slug) == slug


def test_cameras_come_sorted_with_every_column_the_owner_wrote():
    data = b'camid,continent,scene,note\n021,North America, beach ,\n0,Asia,street,"a, b"\n'
    assert parse_cameras(data, "c") == (
        Camera(0, "asia", {"camid": "0", "continent": "Asia", "scene": "street", "note": "a, b"}),
        Camera(21, "north_america", {"camid": "021", "continent": "North America", "scene": "beach", "note": ""}),
    )


@pytest.mark.parametrize(
    "text",
    [
        "camid,continent\n1,asia\n2,europe\n",
        "\ufeffcamid,continent\n1,asia\n2,europe\n",  # as spreadsheets save UTF-8
        "camid,continent\r\n1,asia\r\n2,europe\r\n",
        "camid,continent\n1,asia\n2,europe",
        "camid,continent\n\n1,asia\n\n\n2,europe\n\n",
        " camid , continent \n 1 , asia \n 2 , europe \n",
        '"camid","continent"\n"1","asia"\n"2","europe"\n',
        "continent,camid\nasia,1\neurope,2\n",
        "camid,continent\n001,asia\n0002,europe\n",
        "camid,continent\n1,asia,surplus\n2,europe,x,y\n",
        "camid,continent,scene\n1,asia\n2,europe\n",
    ],
)
def test_the_ways_in_which_people_and_spreadsheets_write_it(text):
    assert parse(text) == {1: "asia", 2: "europe"}


def test_camera_0_is_a_camera():
    assert parse("camid,continent\n0,asia\n") == {0: "asia"}


def test_a_header_alone_describes_no_camera():
    assert parse("camid,continent\n") == {}


def test_an_unusable_continent_is_kept_as_none_so_that_its_crops_can_be_rejected():
    assert parse("camid,continent\n1,test\n2,asia\n") == {1: None, 2: "asia"}


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [
        (b"", 1, "no column camid and continent"),
        (b"camid;continent\n1;asia\n", 1, "found camid;continent"),
        (b"camid,country\n1,asia\n", 1, "no column continent"),
        (b"continent\nasia\n", 1, "no column camid"),
        (b"1,asia\n2,europe\n", 1, "no column"),
        (b"camid,continent\n1,asia\nx,asia\n", 3, "'x'"),
        (b"camid,continent\n-1,asia\n", 2, "'-1'"),
        (b"camid,continent\n1.0,asia\n", 2, "'1.0'"),
        (b"camid,continent\n1_0,asia\n", 2, "'1_0'"),
        ("camid,continent\n١,asia\n".encode(), 2, "'١'"),
        (b"camid,continent\n,asia\n", 2, "''"),
        (b"camid,continent\n99999999999,asia\n", 2, "99999999999"),
        (b"camid,continent\n1,asia\n1,asia\n", 3, "camera 1 stands there twice"),
        (b"camid,continent\n1,asia\n001,europe\n", 3, "camera 1 stands there twice"),
        (b"camid,continent\n\n\n1,asia\n1,asia\n", 5, "twice"),
        ("camid,continent\n1,asia\n".encode("utf-16"), 1, "not UTF-8"),
        (b"camid,continent\n1,Am\xe9rique\n", None, "not UTF-8"),
        (b'camid,continent\n1,"' + b"x" * 200_000, None, ""),  # a quote that nobody closes
    ],
)
def test_what_cannot_be_understood_is_an_error_that_names_the_line(data, line, part):
    with pytest.raises(CamerasFileError) as caught:
        parse_cameras(data, "some/cameras.csv")
    assert part in str(caught.value)
    assert "'some/cameras.csv'" in str(caught.value)
    assert line in (None, caught.value.line)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "cams.csv"
    path.write_bytes(b"camid,continent\n3,asia\n")
    assert read_cameras(path)[0].camid == 3


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name):
    with pytest.raises(SourceError):
        read_cameras(tmp_path / name)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"camid,continent\n" + tail))
def test_no_bytes_raise_anything_else(data):
    try:
        cameras = parse_cameras(data, "c")
    except CamerasFileError:
        return
    assert all(camera.camid >= 0 for camera in cameras)


def test_a_blank_continent_is_unknown():
    (camera,) = parse_cameras(b"camid,continent,scene\n3, ,mall\n", "cameras.csv")
    assert (camera.continent, camera.columns["scene"]) == ("unknown", "mall")
