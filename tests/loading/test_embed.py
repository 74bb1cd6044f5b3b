from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from entire_id.errors import FeaturesError, ImageDecodeError, OutputExistsError, SplitNotFoundError
from entire_id.images import decode_rgb
from entire_id.loading.colour import describe_colour
from entire_id.loading.embed import embed, features_folder, read_features
from entire_id.loading.reader import CropReader

from builders import crop_names, image_bytes, pack_folder, write_crops

SPLITS = ["query", "gallery"]


def test_features_are_those_of_the_rows(packed_any: Path) -> None:
    out = features_folder(packed_any, "colour")
    assert out == packed_any.with_name("entire-id.features") / "colour"
    embed(packed_any, SPLITS, "colour", out, batch_rows=7)
    for split in SPLITS:
        found = read_features(packed_any, split, out)
        with CropReader(packed_any, split) as reader:
            expected = describe_colour([decode_rgb(reader.read(row)) for row in range(len(reader))])
            np.testing.assert_array_equal(found.values, expected)
            np.testing.assert_array_equal(found.pids, reader.pids)
            np.testing.assert_array_equal(found.camids, reader.camids)
            assert found.keys == reader.keys


def test_features_are_the_same_twice_and_replace_older_ones(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    embed(packed, SPLITS, "colour", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert set(first) == {"features.json", "gallery.keys.npy", "gallery.npy", "query.keys.npy", "query.npy"}


def test_folder_of_something_else_is_refused_and_untouched(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="it is not empty"):
        embed(packed, SPLITS, "colour", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_failure_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitNotFoundError):
        embed(packed, ["query", "train"], "colour", tmp_path / "features")
    assert not list(tmp_path.glob("features*"))


def test_unknown_model_names_those_there_are(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="no model 'resnet'; there is colour"):
        embed(packed, SPLITS, "resnet", tmp_path / "features")


def test_features_of_another_content_are_refused(packed: Path, crops: Path, tmp_path: Path) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    (crops / "query" / "00000_c000s0_760487.jpg").unlink()
    other = pack_folder(crops, tmp_path / "other")
    with pytest.raises(FeaturesError, match="made of another content"):
        read_features(other, "query", out)


def test_missing_features_say_how_to_make_them(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="no features of query.*entire-id embed"):
        read_features(packed, "query", tmp_path)


def test_swapped_features_are_refused(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    shutil.copy(out / "gallery.keys.npy", out / "query.keys.npy")
    with pytest.raises(FeaturesError, match="their keys are not those of query"):
        read_features(packed, "query", out)


def test_folder_that_only_looks_like_features_is_refused_and_untouched(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError):
        embed(packed, SPLITS, "colour", out)
    assert (out / "thesis.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "features.json").write_text("{}")
    with pytest.raises(OutputExistsError):
        embed(packed, SPLITS, "colour", tmp_path / "mine")


def test_splits_can_be_embedded_one_after_the_other(packed: Path, tmp_path: Path) -> None:
    whole = embed(packed, SPLITS, "colour", tmp_path / "whole")
    for split in SPLITS:
        embed(packed, [split], "colour", tmp_path / "parts")
    for path in whole.iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", ["[]", "{}", "no json"])
def test_features_that_do_not_say_what_they_are_of_are_refused(packed: Path, tmp_path: Path, text: str) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    (out / "features.json").write_text(text)
    with pytest.raises(FeaturesError, match="another content"):
        read_features(packed, "query", out)


def test_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "crops", crop_names(people=1))
    data = image_bytes(1, kind="PNG")
    middle = data.index(b"IDAT") + 10
    (source / "query" / "00000_c021s0_760487.jpg").write_bytes(data[:middle] + b"damage" + data[middle + 6 :])
    packed = pack_folder(source, tmp_path / "entire-id")
    with pytest.raises(ImageDecodeError, match="the image of 'query/00000_c021s0_760487' does not decode"):
        embed(packed, ["query"], "colour", tmp_path / "features")
