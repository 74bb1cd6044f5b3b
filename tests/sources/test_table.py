"""Tables of anyone's crops: CSV and Parquet say the same, and no row is lost."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entire_id.errors import CamerasFileError, EntireIdError, SourceError, TableError
from entire_id.records import Reason, Rejected, Sample
from entire_id.sources.table import TableSource

from builders import write_crops

KINDS = pytest.mark.parametrize("kind", ["csv", "parquet"])
ROW = {"path": "a/1.jpg", "pid": 3, "camid": 0, "split": "query"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, named as their owner likes."""
    write_crops(tmp_path / "mine", ["a/1.jpg", "a/2.jpg", "b.c/Ü 3.png"])
    return tmp_path / "mine"


def write_table(kind: str, folder: Path, rows: list[dict]) -> TableSource:
    """Write a table in `folder` and open it."""
    path = folder / f"table.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return TableSource(path)


def reasons(source: TableSource) -> list[Reason | None]:
    return [item.reason if isinstance(item, Rejected) else None for item in source.samples()]


@KINDS
def test_rows_become_samples_in_their_order(kind, folder):
    rows = [
        {"path": "b.c/Ü 3.png", "pid": 0, "camid": 7, "split": "gallery"},
        {"path": "a/1.jpg", "pid": -1, "camid": 0, "split": "train"},
        {"path": "a/2.jpg", "pid": 3, "camid": 1, "split": "val"},
    ]
    found = list(write_table(kind, folder, rows).samples())
    assert found == [
        Sample("", "b.c/Ü 3.png", "gallery", 0, 7),
        Sample("", "a/1.jpg", "train", -1, 0),
        Sample("", "a/2.jpg", "val", 3, 1),
    ]
    assert [(sample.path, sample.key) for sample in found] == [
        ("b.c/Ü 3.png", "gallery/b%2Ec/Ü 3"),
        ("a/1.jpg", "train/a/1"),
        ("a/2.jpg", "val/a/2"),
    ]


@KINDS
def test_optional_columns_are_taken_where_they_hold_something(kind, folder):
    rows = [
        ROW | {"seq": 2, "frame": 2**40, "continent": "North America", "weather": "rain"},
        ROW | {"seq": None, "frame": None, "continent": None, "weather": None},
    ]
    full, empty = write_table(kind, folder, rows).samples()
    assert (full.seq, full.frame, full.continent) == (2, 2**40, "north_america")
    assert (empty.seq, empty.frame, empty.continent) == (-1, -1, "unknown")


@KINDS
def test_every_bad_row_is_rejected_with_its_reason(kind, folder):
    (folder.parent / "outside.jpg").write_bytes(b"x")
    (folder / "out.jpg").symlink_to("../outside.jpg")
    (folder / "in.jpg").symlink_to("a/1.jpg")
    os.mkfifo(folder / "pipe.jpg")
    bad_paths = {
        "in.jpg": None,
        "./a/1.jpg": None,
        "a/missing.jpg": Reason.MISSING,
        "../outside.jpg": Reason.UNSAFE_PATH,
        "a/../../outside.jpg": Reason.UNSAFE_PATH,
        str(folder / "a/1.jpg"): Reason.UNSAFE_PATH,
        "a\\1.jpg": Reason.UNSAFE_PATH,
        "": Reason.UNSAFE_PATH,
        "out.jpg": Reason.LINK,
        "new\nline.jpg": Reason.MISSING,
    }
    rows = [ROW | {"path": path} for path in bad_paths]
    assert dict(zip(bad_paths, reasons(write_table(kind, folder, rows)), strict=True)) == bad_paths
    for path in ("pipe.jpg", "a"):  # no file to read
        assert reasons(write_table(kind, folder, [ROW | {"path": path}]))[0] is not None


@KINDS
@pytest.mark.parametrize("split", ["test", "Query", "query ", "", "bounding_box_test", "../query"])
def test_a_split_that_does_not_exist_is_rejected(kind, folder, split):
    assert reasons(write_table(kind, folder, [ROW | {"split": split}])) == [Reason.SPLIT]


@pytest.mark.parametrize("column", ["pid", "camid", "seq", "frame"])
@pytest.mark.parametrize(
    "value", ["x", "1.0", "1.5", "1e3", "nan", "0x1", "True", "--1", "99999999999999999999", "-3", "1" * 5000]
)
def test_text_that_is_no_whole_number_in_range_is_rejected(folder, column, value):
    assert reasons(write_table("csv", folder, [ROW | {column: value}])) == [Reason.NUMBER]


@pytest.mark.parametrize("value", ["1_0", "1_000", "٣", "３"])
def test_numbers_that_only_python_reads_are_rejected(folder, value):
    """`int` takes 12_3 for 123: in a field where names are made of underscores that is another person."""
    assert reasons(write_table("csv", folder, [ROW | {"pid": value}])) == [Reason.NUMBER]


@pytest.mark.parametrize(("value", "pid"), [("007", 7), ("-1", -1), (" 7", 7), ("-2", -2), ("2147483647", 2147483647)])
def test_numbers_as_people_write_them(folder, value, pid):
    (sample,) = write_table("csv", folder, [ROW | {"pid": value}]).samples()
    assert sample.pid == pid


@pytest.mark.parametrize("column", ["pid", "camid"])
@pytest.mark.parametrize("value", [1.5, float("nan"), None, True, 2**31, -3, b"1"])
def test_values_of_parquet_that_are_no_whole_number_in_range_are_rejected(folder, column, value):
    assert reasons(write_table("parquet", folder, [ROW | {column: value}])) == [Reason.NUMBER]


def test_numbers_of_every_integer_type_of_parquet_are_read(folder):
    for dtype in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.string()):
        value = "5" if dtype == pa.string() else 5
        table = pa.table({**{name: [ROW[name]] for name in ROW}, "pid": pa.array([value], dtype)})
        pq.write_table(table, folder / "typed.parquet")
        assert [sample.pid for sample in TableSource(folder / "typed.parquet").samples()] == [5]


@KINDS
@pytest.mark.parametrize("continent", ["test", "default", "7 seas", "../x"])
def test_a_continent_that_can_name_no_config_is_rejected(kind, folder, continent):
    (rejected,) = write_table(kind, folder, [ROW | {"continent": continent}]).samples()
    assert rejected.reason is Reason.CONTINENT


def test_a_continent_of_the_table_is_not_blamed_on_cameras_csv(folder):
    (rejected,) = write_table("csv", folder, [ROW | {"continent": "test"}]).samples()
    assert "cameras.csv" not in rejected.detail
    assert "'test'" in rejected.detail


def test_the_row_wins_over_cameras_csv_and_cameras_csv_over_nothing(folder):
    (folder / "cameras.csv").write_text("camid,continent\n0,asia\n1,test\n")
    rows = [
        ROW | {"continent": ""},
        ROW | {"continent": "europe"},
        ROW | {"camid": 1, "continent": ""},
        ROW | {"camid": 1, "continent": "africa"},
        ROW | {"camid": 2, "continent": ""},
    ]
    found = [item.reason if isinstance(item, Rejected) else item.continent for item in _samples(folder, rows)]
    assert found == ["asia", "europe", Reason.CONTINENT, "africa", "unknown"]


def _samples(folder, rows):
    source = write_table("csv", folder, rows)
    assert [camera.camid for camera in source.cameras] == [0, 1]
    return list(source.samples())


def test_another_cameras_csv_may_be_named_and_a_broken_one_is_an_error(folder):
    write_table("csv", folder, [ROW])
    other = folder / "other.csv"
    other.write_text("camid,continent\n0,africa\n")
    assert [s.continent for s in TableSource(folder / "table.csv", other).samples()] == ["africa"]
    (folder / "cameras.csv").write_text("broken")
    with pytest.raises(CamerasFileError):
        TableSource(folder / "table.csv")


@KINDS
@pytest.mark.parametrize("column", list(ROW))
def test_a_missing_column_is_an_error_that_names_it_and_those_there(kind, folder, column):
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(TableError, match=f"no column {column}") as caught:
        write_table(kind, folder, [row | {"extra": "1"}])
    assert set(caught.value.found) == {*row, "extra"}


@KINDS
def test_a_table_without_rows_has_no_samples(kind, folder):
    if kind == "csv":
        (folder / "table.csv").write_text("path,pid,camid,split\n")
    else:
        schema = pa.schema([("path", pa.string()), ("pid", pa.int64()), ("camid", pa.int64()), ("split", pa.string())])
        pq.write_table(schema.empty_table(), folder / "table.parquet")
    assert list(TableSource(folder / f"table.{kind}").samples()) == []


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath,pid,camid,split\na/1.jpg,3,0,query\n",
        "path,pid,camid,split\r\na/1.jpg,3,0,query\r\n",
        "path,pid,camid,split\n\na/1.jpg,3,0,query\n\n",
        '"path","pid","camid","split"\n"a/1.jpg","3","0","query"\n',
        "split,camid,pid,path\nquery,0,3,a/1.jpg",
        "path,pid,camid,split,seq\na/1.jpg,3,0,query\n",
        "path,pid,camid,split\na/1.jpg,3,0,query,surplus\n",
    ],
)
def test_the_ways_in_which_csv_is_written(folder, text):
    (folder / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert list(TableSource(folder / "t.csv").samples()) == [Sample("", "a/1.jpg", "query", 3, 0)]


@pytest.mark.parametrize(("line", "reason"), [("a/1.jpg", Reason.SPLIT), ("a/1.jpg,3,0", Reason.SPLIT)])
def test_a_row_that_is_too_short_is_rejected(folder, line, reason):
    (folder / "t.csv").write_text(f"path,pid,camid,split\n{line}\na/2.jpg,1,1,query\n")
    assert reasons(TableSource(folder / "t.csv")) == [reason, None]


@pytest.mark.parametrize(
    "data",
    [
        b"path;pid;camid;split\na/1.jpg;3;0;query\n",
        "path,pid,camid,split\n".encode("utf-16"),
        b"\xff\xfepath",
        b"",
    ],
)
def test_text_that_is_no_such_table_is_an_error(folder, data):
    (folder / "t.csv").write_bytes(data)
    with pytest.raises(TableError):
        TableSource(folder / "t.csv")


@pytest.mark.parametrize(
    "tail", [b"a/\xe9.jpg,3,0,query\n", b"a/1.jpg,3,0,query\n" * 9000 + b"\xff", b'"' + b"x" * 200_000]
)
def test_text_that_stops_making_sense_is_an_error_and_no_crash(folder, tail):
    (folder / "t.csv").write_bytes(b"path,pid,camid,split\n" + tail)
    with pytest.raises(TableError):
        list(TableSource(folder / "t.csv").samples())


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"path,pid\n", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_bytes_that_are_no_parquet_are_an_error(folder, data):
    (folder / "t.parquet").write_bytes(data)
    with pytest.raises(TableError):
        TableSource(folder / "t.parquet")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_no_turned_byte_of_a_parquet_raises_anything_unexpected(folder, position, value):
    write_table("parquet", folder, [ROW] * 3)
    path = folder / "table.parquet"
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        list(TableSource(path).samples())
    except EntireIdError:
        return


@KINDS
def test_a_path_given_in_several_spellings_has_one_key(kind, folder):
    rows = [ROW | {"path": path} for path in ("a/1.jpg", "./a/1.jpg", "a//1.jpg", "a/./1.jpg")]
    assert {item.key for item in write_table(kind, folder, rows).samples()} == {"query/a/1"}


def test_reading_goes_by_the_folder_of_the_table(folder):
    source = write_table("csv", folder, [ROW])
    assert source.read("a/1.jpg").data == (folder / "a/1.jpg").read_bytes()
    assert source.name == str(folder / "table.csv")


def test_a_table_that_is_not_there_is_an_error(folder):
    with pytest.raises(SourceError, match="no such file"):
        TableSource(folder / "gone.csv")
