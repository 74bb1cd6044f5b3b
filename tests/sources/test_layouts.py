"""Opening any source by what it is."""

from __future__ import annotations

import pytest

from entire_id.errors import LayoutNotFoundError, SourceError, TableError
from entire_id.sources.crops import CropSource
from entire_id.sources.layouts import LAYOUTS, open_source
from entire_id.sources.table import TableSource

from builders import crop_names, write_crops, write_zip

HEADER = "path,pid,camid,split\n"


def test_folders_zips_and_tables_are_told_apart(tmp_path):
    write_crops(tmp_path / "crops", crop_names(1))
    write_zip(tmp_path / "crops.zip", {"query/00001_c001s0_1.jpg": b""})
    (tmp_path / "crops.csv").write_text(HEADER)
    (tmp_path / "CROPS.CSV").write_text(HEADER)
    write_crops(tmp_path / "folder.csv", crop_names(1))
    kinds = {
        name: type(open_source(tmp_path / name))
        for name in ("crops", "crops.zip", "crops.csv", "CROPS.CSV", "folder.csv")
    }
    assert kinds == {
        "crops": CropSource,
        "crops.zip": CropSource,
        "crops.csv": TableSource,
        "CROPS.CSV": TableSource,
        "folder.csv": CropSource,
    }


@pytest.mark.parametrize("name", ["missing", "missing.zip", "missing.csv", "missing.parquet"])
def test_what_is_not_there_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(SourceError, match="no such file") as caught:
        open_source(tmp_path / name)
    assert caught.value.path == str(tmp_path / name)


def test_an_unknown_layout_is_answered_with_the_known_ones(tmp_path):
    write_crops(tmp_path, crop_names(1))
    with pytest.raises(SourceError, match="unknown layout 'market'.*entire-id"):
        open_source(tmp_path, "market")


def test_a_single_crop_is_no_source(tmp_path):
    (tmp_path / "00009_c021s0_760487.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="neither a folder"):
        open_source(tmp_path / "00009_c021s0_760487.jpg")


@pytest.mark.parametrize(("name", "error"), [("a.csv", TableError), ("a.parquet", TableError), ("a.zip", SourceError)])
def test_an_empty_file_is_an_error(tmp_path, name, error):
    (tmp_path / name).touch()
    with pytest.raises(error):
        open_source(tmp_path / name)


def test_a_split_folder_itself_is_answered_with_what_to_give_instead(tmp_path):
    write_crops(tmp_path, crop_names(1))
    with pytest.raises(
        LayoutNotFoundError, match="give the folder that holds it|Give the folder or zip that holds them"
    ):
        open_source(tmp_path / "query")


def test_a_source_is_named_by_its_path(tmp_path):
    write_crops(tmp_path / "crops", crop_names(1))
    (tmp_path / "crops.csv").write_text(HEADER)
    for name in ("crops", "crops.csv"):
        assert open_source(tmp_path / name).name == str(tmp_path / name)


def test_every_layout_is_listed_by_its_own_name_and_parses_its_own_example():
    for name, layout in LAYOUTS.items():
        assert layout.name == name
        assert layout.parse_name(layout.example.rpartition(".")[0]) is not None
