from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from entire_id.cli.main import app
from entire_id.errors import (
    CorruptCropError,
    FeaturesError,
    ImageDecodeError,
    ModelCodeError,
    ModelError,
    OutputExistsError,
    SplitNotFoundError,
    WriteFailedError,
)
from entire_id.images import decode_rgb
from entire_id.loading.colour import describe_colour
from entire_id.loading.embed import embed, features_folder, read_features
from entire_id.loading.models import Model
from entire_id.loading.reader import CropReader

from builders import crop_names, image_bytes, pack_folder, resize_disk, tree, write_crops
from webserver import WebServer

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


def test_features_know_what_the_owner_says_of_cameras(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    found = read_features(packed, "gallery", out)
    scenes = {0: "street", 1: "mall", 21: "beach"}
    assert found.columns["scene"].tolist() == [scenes[camid] for camid in found.camids.tolist()]
    lines = (packed / "cameras.csv").read_text().splitlines()
    (packed / "cameras.csv").write_text("\n".join(lines[:2]))
    found = read_features(packed, "gallery", out)
    assert set(found.columns["scene"][found.camids != 0]) == {"unknown"}
    (packed / "cameras.csv").unlink()
    assert set(read_features(packed, "gallery", out).columns) == {"continent", "seq", "frame", "width", "height"}


@pytest.mark.parametrize("place", ["owner/entire-id", "web"])
def test_a_data_set_elsewhere_is_embedded_and_scored_by_the_same_commands(
    place: str, packed: Path, hub: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = hub.url if place == "web" else place

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    run("embed", where)
    folder = features_folder(where, "colour")
    assert folder.parent.parent == tmp_path
    near = embed(packed, SPLITS, "colour", tmp_path / "near")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in near.iterdir()
    }
    expected = run("evaluate", str(packed), "--features", str(near), "--by", "scene", "--json")
    assert run("evaluate", where, "--by", "scene", "--json") == expected
    run("show", where, "ranked.png", "--ranked")
    run("show", str(packed), "near.png", "--ranked", "--features", str(near))
    assert Path("ranked.png").read_bytes() == Path("near.png").read_bytes()


def test_a_corrupt_crop_elsewhere_is_named(packed: Path, hub: WebServer, tmp_path: Path) -> None:
    with CropReader(packed, "query") as reader:
        key, offset = reader.keys[1], reader.meta["offset"][1].as_py()
        shard = packed / next(shard.path for shard in reader.manifest.shards if shard.split == "query")
    data = bytearray(shard.read_bytes())
    data[offset + 100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCropError, match=re.escape(key)):
        embed(hub.url, ["query"], "colour", tmp_path / "features")


def test_keys_are_written_as_numpy_writes_them(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entire_id.loading.embed._KEYS_AT_ONCE", 5)
    out = embed(packed, ["query"], "colour", tmp_path / "features")
    with CropReader(packed, "query") as reader:
        np.save(tmp_path / "expected.npy", np.array(reader.keys))
    assert (out / "query.keys.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert len(read_features(packed, "query", out).keys) == 12
    keys = np.load(out / "query.keys.npy")
    np.save(out / "query.keys.npy", keys[::-1])
    with pytest.raises(FeaturesError, match="their keys are not those of query"):
        read_features(packed, "query", out)


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


def test_unknown_model_says_what_a_model_may_be(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model 'resnet': no such model; expected colour, a folder"):
        embed(packed, SPLITS, "resnet", tmp_path / "features")


def test_facts_say_how_features_were_made(packed: Path, tmp_path: Path) -> None:
    out = embed(packed, ["query"], "colour", tmp_path / "features")
    facts = json.loads((out / "features.json").read_text())
    assert facts["model"] == "colour"
    assert facts["dim"] == 864
    assert facts["preprocessing"] == {"output": "colour histograms of six stripes"}


def test_features_whose_facts_are_fewer_are_read_and_replaced(packed: Path, tmp_path: Path) -> None:
    """As the first versions wrote them."""
    out = embed(packed, SPLITS, "colour", tmp_path / "features")
    facts = json.loads((out / "features.json").read_text())
    (out / "features.json").write_text(json.dumps({name: facts[name] for name in ("model", "content_sha256")}))
    assert read_features(packed, "query", out).values.shape == (12, 864)
    embed(packed, ["query"], "colour", out)
    assert {path.name for path in out.iterdir()} == {"features.json", "query.keys.npy", "query.npy"}


MODEL = """
import os, signal, time
import numpy as np

rows = 0
stop = int(os.environ.get("STOP_AT", "0"))


def describe(images):
    global rows
    if len(images) > 1:
        rows += len(images)
        print(len(images), flush=True)
    if stop and rows == stop:
        time.sleep(0.6)  # the next batch is noted
    if stop and rows > stop + 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.stack([np.append(image.mean((0, 1)), image.std()) for image in images])
"""


def embed_in_process(packed: Path, model: str, out: Path, *options: str, stop_at: int = 0) -> list[int]:
    """Embed with a module beside the data set; return the sizes of the batches that the model was given."""
    (packed.parent / "mine.py").write_text(MODEL)
    command = [sys.executable, "-m", "entire_id", "embed", str(packed), "--model", model, "--features", str(out)]
    done = subprocess.run(
        [*command, "--batch-rows", "4", *options],
        cwd=packed.parent,
        env=os.environ | {"STOP_AT": str(stop_at)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (-signal.SIGKILL if stop_at else 0), done.stderr
    return [int(line) for line in done.stdout.split()]


def test_killed_run_goes_on_where_it_stopped_with_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sum(embed_in_process(packed, "mine:describe", whole)) == 36
    assert sum(embed_in_process(packed, "mine:describe", parts, stop_at=20)) == 28  # 12 query, 8 gallery noted
    assert not parts.exists()
    assert sum(embed_in_process(packed, "mine:describe", parts)) == 16
    assert tree(parts) == tree(whole)
    assert not (tmp_path / "parts.partial").exists()


def test_work_of_another_batch_size_or_model_is_not_gone_on_with(packed: Path, tmp_path: Path) -> None:
    embed_in_process(packed, "mine:describe", tmp_path / "parts", stop_at=20)
    out = embed(packed, ["gallery"], "colour", tmp_path / "parts")
    assert {path.name for path in out.iterdir()} == {"features.json", "gallery.keys.npy", "gallery.npy"}
    assert tree(out) == tree(embed(packed, ["gallery"], "colour", tmp_path / "whole"))


def test_error_of_the_disk_or_ctrl_c_leaves_the_work_for_the_next_run(packed: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "embedding gallery":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(packed, SPLITS, "colour", tmp_path / "parts", interrupt)
    seen: list[str] = []
    embed(packed, SPLITS, "colour", tmp_path / "parts", lambda stage, *_: seen.append(stage))
    assert seen == []  # the last batch was noted before progress was told
    assert tree(tmp_path / "parts") == tree(embed(packed, SPLITS, "colour", tmp_path / "whole"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e60])
def test_feature_that_is_not_finite_is_named(packed: Path, tmp_path: Path, value: float) -> None:
    def spoilt(images: list[np.ndarray]) -> np.ndarray:
        values = np.ones((len(images), 3))
        values[5:6, 1] = value
        return values

    with CropReader(packed, "query") as reader:
        key = reader.keys[5]
    model = Model("spoilt", 3, {}, spoilt)
    with pytest.raises(ModelError, match=f"the feature of '{key}' is not finite"):
        embed(packed, SPLITS, model, tmp_path / "features")
    assert not list(tmp_path.glob("features*"))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda images: np.ones((len(images) - 1, 3)), r"shape \(11, 3\) for 12 crops; expected \(12, 3\)"),
        (lambda images: np.ones((len(images), 4)), r"shape \(12, 4\) for 12 crops; expected \(12, 3\)"),
        (lambda images: np.ones((len(images), 3), int), "int64 values; expected floats"),
    ],
)
def test_model_that_gives_something_else_is_refused(packed: Path, tmp_path: Path, gives, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        embed(packed, SPLITS, Model("odd", 3, {}, gives), tmp_path / "features")


def test_full_disk_says_so_and_the_next_run_goes_on(packed: Path, small_disk: Path, tmp_path: Path) -> None:
    model = Model("wide", 60_000, {}, lambda images: np.stack([np.resize(image / 255, 60_000) for image in images]))
    with pytest.raises(WriteFailedError, match="No space left on device"):
        embed(packed, SPLITS, model, small_disk / "features", batch_rows=1)
    assert not (small_disk / "features").exists()
    resize_disk(small_disk, 20 << 20)
    embed(packed, SPLITS, model, small_disk / "features", batch_rows=1)
    assert tree(small_disk / "features") == tree(embed(packed, SPLITS, model, tmp_path / "whole", batch_rows=1))


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


def test_work_stays_after_an_error_of_an_own_function(packed: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def describe(images: list[np.ndarray]) -> np.ndarray:
        seen.append(len(images))
        if len(seen) == 4:
            raise RuntimeError("out of memory\nmore")
        return np.stack([image.mean((0, 1)) for image in images])

    describe.version = "1"
    with pytest.raises(ModelCodeError, match=r"a list of 8 .*, it raised RuntimeError: out of memory \(.*:\d+\)$"):
        embed(packed, SPLITS, describe, tmp_path / "features", batch_rows=8)
    assert seen == [1, 8, 4, 8]
    out = embed(packed, SPLITS, describe, tmp_path / "features", batch_rows=8)
    assert seen[4:] == [1, 8, 8, 8]  # nothing of the query again
    assert len(read_features(packed, "gallery", out).values) == 24
