"""The map-style data set: which crops, which labels, which random numbers, in which process."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import entire_id
from entire_id import CropDataset, CropReader, Draw, FetchOptions, LabelMap, ReadOptions, Selection, join, on_pil
from entire_id.errors import CorruptCropError, ImageDecodeError, ManifestError, SelectionError, SplitNotFoundError
from entire_id.loading.files import open_files
from entire_id.loading.index import ShardFile, ShardIndex

from builders import CAMERAS, crop_names, image_bytes, pack_folder, write_crops
from webserver import WebServer

QUICK = ReadOptions(FetchOptions(backoff_s=0.001, timeout_s=5))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A data set with a train part of 3 people, junk among them, and the usual test part."""
    names = [
        f"bounding_box_train/{pid}_c{camid:03d}s0_{frame}.jpg"
        for pid in ("00003", "00005", "00009")
        for camid, frame in [(0, 1), (21, 2)]
    ]
    source = write_crops(tmp_path / "crops", [*names, "bounding_box_train/-1_c000s0_9.jpg", *crop_names()])
    (source / "cameras.csv").write_text(CAMERAS)
    return pack_folder(source, tmp_path / "entire-id")


def numbers(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A transform that shows what it draws."""
    return np.append(pixels.shape, rng.integers(1 << 30, size=2))


# --- items ---


def test_items_are_the_crops_with_labels(trained: Path) -> None:
    dataset = CropDataset(trained, "train")
    with CropReader(trained, "train") as reader:
        rows = [row for row in range(len(reader)) if reader.pids[row] != -1]
        assert len(dataset) == len(rows) == 6
        for number, row in enumerate(rows):
            item = dataset[number]
            assert np.array_equal(item["image"], reader.pixels(row))
            assert item["image"].flags.writeable, "or torch complains"
            assert (item["pid"], item["camid"]) == (reader.pids[row], reader.camids[row])
            assert (dataset.key(number), item["row"]) == (reader.keys[row], number)
            assert item["label"] == {3: 0, 5: 1, 9: 2}[item["pid"]] == dataset.labels[number]
    assert dataset.keys == [dataset.key(row) for row in range(6)]
    assert dataset.label_map == LabelMap((3, 5, 9), "train")
    assert (dataset.labels.dtype, dataset.pids.dtype, dataset.camids.dtype) == (np.int64, np.int32, np.int32)
    assert dataset.seqs.tolist() == [0] * 6
    assert {dataset.continent_names[code] for code in dataset.continents} == {"asia", "europe"}


def test_png_pixels_are_writeable_too(tmp_path: Path) -> None:
    names = [name.replace(".jpg", ".png") for name in crop_names(people=1)]
    dataset = CropDataset(pack_folder(write_crops(tmp_path / "crops", names), tmp_path / "entire-id"), "query")
    assert all(dataset[row]["image"].flags.writeable for row in range(len(dataset)))


def test_bytes(packed_any: Path) -> None:
    dataset = CropDataset(packed_any, "gallery", decode=False)
    with CropReader(packed_any, "gallery") as reader:
        assert [item["image"] for item in dataset] == [reader.read(row) for row in range(24)]
    with pytest.raises(ValueError, match="decode=False"):
        CropDataset(packed_any, "gallery", decode=False, transform=numbers)


def test_rows_are_counted_as_in_a_list(packed: Path) -> None:
    dataset = CropDataset(packed, "gallery")
    assert dataset[-1]["row"] == dataset[np.int64(23)]["row"] == 23
    assert [item["row"] for item in dataset.__getitems__([3, -24, 3])] == [3, 0, 3]
    for row in (24, -25):
        with pytest.raises(IndexError, match=f"row {row} of 24"):
            dataset[row]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, row])
    assert dataset.__getitems__([]) == []


def test_remote_items_are_the_same(trained: Path, web: WebServer) -> None:
    near = CropDataset(trained, "train", transform=numbers)
    far = CropDataset(f"{web.url}/entire-id", "train", transform=numbers, reading=QUICK)
    draws = [Draw(row, (row, 7)) for row in (5, 0, 3, 3)]
    for mine, other in zip(near.__getitems__(draws), far.__getitems__(draws), strict=True):
        assert np.array_equal(mine.pop("image"), other.pop("image"))
        assert mine == other


def test_missing_split_says_who_did_not_release_it(packed: Path) -> None:
    with pytest.raises(SplitNotFoundError, match="not released by the authors"):
        CropDataset(packed, "train")


# --- selection ---


def test_selection(trained: Path) -> None:
    assert len(CropDataset(trained, "train", select=Selection(keep_junk=True))) == 7
    some = CropDataset(trained, "train", select=Selection(cameras=[21], pids={5, 9}))
    assert sorted(zip(some.pids.tolist(), some.camids.tolist(), strict=True)) == [(5, 21), (9, 21)]
    assert some.label_map.pids == (5, 9)
    assert CropDataset(trained, "train", select=Selection(continents=("europe",))).camids.tolist() == [21] * 3
    assert len(CropDataset(trained, "train", select=Selection(min_width=24, min_height=48))) == 6
    for item in some:
        assert some.key(item["row"]).startswith(f"train/{item['pid']:05d}_c{item['camid']:03d}")


@pytest.mark.parametrize(
    ("select", "what"),
    [
        (Selection(cameras=[21, 4, 99]), "no camera 4, 99 in it"),
        (Selection(pids=[-1, 3, 4]), "no person 4 in it"),
        (Selection(pids=range(1, 40)), r"no person 1, 2, 4, 6, 7, 8, 10, 11 … \(36 in all\) in it"),
        (Selection(continents=["asien"]), "no continent 'asien'; there is asia, europe"),
        (Selection(min_height=49), "none of 7 crops is left"),
        (Selection(cameras=[]), "none of 7 crops is left"),
    ],
)
def test_selection_of_what_is_not_there(trained: Path, select: Selection, what: str) -> None:
    with pytest.raises(SelectionError, match=what):
        CropDataset(trained, "train", select=select)


ROWS = st.lists(
    st.tuples(st.integers(-1, 5), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2)),
    min_size=1,
    max_size=30,
)


def index_of(rows: list[tuple[int, int, int, int, int]]) -> ShardIndex:
    """An index of (pid, camid, width, height, shard) without any files."""
    pids, camids, widths, heights, shards = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int64)
    columns = {"pid": pids, "camid": camids, "seq": zeros, "width": widths, "height": heights, "shard": shards}
    columns |= {"place": zeros, "offset": zeros, "length": zeros}
    files = open_files(Path.cwd())
    parts = [ShardFile(files, "", "", 0, name, 0, ()) for name in ("asia", "europe", "asia")]
    return ShardIndex(parts, pa.table(columns), {})


@given(
    ROWS,
    st.none() | st.sets(st.integers(0, 4)),
    st.none() | st.sets(st.integers(0, 5)),
    st.none() | st.sets(st.sampled_from(["asia", "europe"])),
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()),
)
def test_selected_rows_meet_every_condition(
    rows: list[tuple[int, int, int, int, int]],
    cameras: set[int] | None,
    pids: set[int] | None,
    continents: set[str] | None,
    rest: tuple[int, int, bool],
) -> None:
    select = Selection(cameras, continents, pids, *rest)
    continent_of = ("asia", "europe", "asia")
    expected = [
        (cameras is None or camid in cameras)
        and (pids is None or pid in pids)
        and (continents is None or continent_of[shard] in continents)
        and width >= rest[0]
        and height >= rest[1]
        and (rest[2] or pid != -1)
        for pid, camid, width, height, shard in rows
    ]
    is_there = (cameras or set()) <= {row[1] for row in rows} and (pids or set()) <= {row[0] for row in rows}
    if is_there and any(expected):
        assert select.mask(index_of(rows), "x").tolist() == expected
    else:
        with pytest.raises(SelectionError):
            select.mask(index_of(rows), "x")


# --- labels ---


@given(st.sets(st.integers(0, 2**31 - 1), min_size=1), st.data())
def test_labels_are_places_among_sorted_pids(people: set[int], data: st.DataObject) -> None:
    labels = LabelMap(tuple(sorted(people)), "train")
    pids = data.draw(st.lists(st.sampled_from([*people, -1])))
    expected = [-1 if pid == -1 else sorted(people).index(pid) for pid in pids]
    found = labels.labels_of(np.array(pids, np.int32))
    assert found.tolist() == expected
    assert found.dtype == np.int64
    assert LabelMap.from_json(labels.to_json()) == labels
    assert pickle.loads(pickle.dumps(labels)) == labels
    stranger = data.draw(st.integers(0, 2**31 - 1).filter(lambda pid: pid not in people))
    with pytest.raises(SelectionError, match=f"{stranger} of 'train' have no label"):
        labels.labels_of(np.array([stranger, *people]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"pids": [1]}',
        '{"pids": 1, "numbering": "x"}',
        '{"pids": ["1"], "numbering": ""}',
        '{"pids": [2, 1], "numbering": ""}',
        '{"pids": [1, 1], "numbering": ""}',
        '{"pids": [-1], "numbering": ""}',
        '{"pids": [true], "numbering": ""}',
    ],
)
def test_what_is_no_label_map(text: str) -> None:
    with pytest.raises(ValueError, match=r"label map|Expecting"):
        LabelMap.from_json(text)


def test_labels_of_a_model_hold_for_later_runs(trained: Path, tmp_path: Path) -> None:
    CropDataset(trained, "train").label_map.save(tmp_path / "labels.json")
    labels = LabelMap.load(tmp_path / "labels.json")
    some = CropDataset(trained, "train", select=Selection(pids=[9]), labels=labels)
    assert some.labels.tolist() == [2, 2]
    assert len(some.label_map) == 3
    few = LabelMap((3, 5), "train")
    with pytest.raises(SelectionError, match="9 of 'train' have no label"):
        CropDataset(trained, "train", labels=few)
    with pytest.raises(SelectionError, match="its people are numbered as 'test', those of the labels as 'train'"):
        CropDataset(trained, "gallery", labels=labels)


# --- splits that are named together ---


def test_train_and_val_are_one_data_set_of_the_same_people(msmt: Path) -> None:
    train, val = (CropDataset(msmt, split) for split in ("train", "val"))
    both, other = CropDataset(msmt, "train+val"), CropDataset(msmt, "val + train")
    assert len(both) == 12 + 6
    assert both.keys == [*train.keys, *val.keys] == [both.key(row) for row in range(18)]
    assert other.keys == [*val.keys, *train.keys]
    assert both.label_map == train.label_map == val.label_map == LabelMap((0, 1, 2), "train")
    for item, old in zip(both, [*train, *val], strict=True):
        assert np.array_equal(item.pop("image"), old.pop("image"))
        assert item | {"row": None} == old | {"row": None}
    assert people_and_cameras(join({"both": both, "val": val})) == people_and_cameras(both), "nothing is numbered anew"
    batches = [both.pids[batch].tolist() for batch in entire_id.PKSampler(both.pids, p=3, k=6)]
    assert [sorted(batch) for batch in batches] == [[0] * 6 + [1] * 6 + [2] * 6]


def test_a_selection_is_of_all_splits_that_are_named(msmt: Path) -> None:
    select = Selection(cameras=[3], pids=[1, 2])  # camera 3 is in train alone
    with pytest.raises(SelectionError, match="msmt17: val': no camera 3"):
        CropDataset(msmt, "val", select=select)
    some = CropDataset(msmt, "train+val", select=select)
    assert some.keys == CropDataset(msmt, "train", select=select).keys
    with pytest.raises(SelectionError, match=r"msmt17: train\+val': no camera 99"):
        CropDataset(msmt, "train+val", select=Selection(cameras=[99]))


def test_copies_of_splits_that_are_named_together_read_them_again(msmt: Path) -> None:
    both = CropDataset(msmt, "val+train", select=Selection(pids=[1]))
    sent = pickle.dumps(both)
    both.index._mapped = None
    assert pickle.loads(sent).keys == both.keys


def test_splits_elsewhere_are_named_together_too(msmt: Path, web: WebServer, tmp_path: Path) -> None:
    shutil.copytree(msmt, tmp_path / "msmt17")
    assert CropDataset(f"{web.url}/msmt17", "val+train", reading=QUICK).keys == CropDataset(msmt, "val+train").keys


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        (
            "train+query",
            SelectionError,
            r"of two parts.* train and query by themselves, then entire_id\.join them",
        ),
        ("train+val+train", SelectionError, "names 'train' twice"),
        ("train+", SplitNotFoundError, "no split '' here; there is train, val, query, gallery"),
        ("val+nobody", SplitNotFoundError, "no split 'nobody' here"),
        ("train[:4]+val", SplitNotFoundError, r"no split 'train\[:4\]' here"),
    ],
)
def test_splits_that_cannot_be_named_together(msmt: Path, split: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CropDataset(msmt, split)
    pytest.importorskip("torch")
    with pytest.raises(error, match=message):
        entire_id.PKStream(msmt, split)


def test_a_reader_is_of_one_split(msmt: Path) -> None:
    with pytest.raises(SplitNotFoundError, match=r"no split 'train\+val' here"):
        CropReader(msmt, "train+val")


# --- joining ---


def test_parts_of_one_data_set_are_joined(trained: Path) -> None:
    parts = {
        "train": CropDataset(trained, "train"),
        "query": CropDataset(trained, "query"),
        "gallery": CropDataset(trained, "gallery"),
    }
    joined = join(parts)
    assert len(joined) == 6 + 12 + 24
    assert joined.source_names == ("train", "query", "gallery")
    assert joined.keys == [key for part in parts.values() for key in part.keys]
    expected = [item | {"source": name} for name, part in parts.items() for item in part]
    for item, source, old in zip(joined, joined.sources, expected, strict=True):
        assert np.array_equal(item["image"], old["image"])
        assert item["camid"] == old["camid"], "cameras are those of one data set"
        assert item["pid"] == old["pid"] + (0 if old["source"] == "train" else 1_000_000)
        assert joined.source_names[source] == old["source"]
    assert joined.label_map.pids == (3, 5, 9, 1_000_000, 1_000_001, 1_000_002, 1_000_003)
    assert joined.labels.max() == 6


def test_two_data_sets_are_joined(trained: Path, tmp_path: Path) -> None:
    names = [f"bounding_box_train/{pid:05d}_c{camid:03d}s0_1.jpg" for pid in (3, 4) for camid in (0, 7)]
    other = pack_folder(write_crops(tmp_path / "more", names), tmp_path / "other", name="other")
    parts = {"a": CropDataset(trained, "train", select=Selection(keep_junk=True)), "b": CropDataset(other, "train")}
    joined = join(parts)
    assert sorted(set(joined.pids.tolist())) == [-1, 3, 5, 9, 1_000_003, 1_000_004]
    assert sorted(set(joined.camids.tolist())) == [0, 21, 1000, 1007]
    assert set(joined.continent_names) == {"asia", "europe", "unknown"}
    assert (joined.labels == -1).sum() == 1
    twice = join({"x": joined, "y": parts["b"]})
    assert twice.source_names == ("x/a", "x/b", "y")
    assert len(np.unique(twice.pids)) == 8
    assert len(np.unique(twice.camids)) == 6
    some = join({"a": CropDataset(trained, "train", select=Selection(pids=[3])), "b": parts["b"]}, joined.label_map)
    assert sorted(set(some.labels.tolist())) == [0, 3, 4]
    with pytest.raises(SelectionError, match="numbered as"):
        join({"b": parts["b"], "a": parts["a"]}, joined.label_map)


def test_labels_of_one_part_are_not_those_of_another(trained: Path) -> None:
    train, query, gallery = (join({"a": CropDataset(trained, split)}) for split in ("train", "query", "gallery"))
    assert query.label_map.numbering == "a: (test) + 0"
    assert gallery.label_map == query.label_map
    labels = LabelMap(tuple(range(10)), train.label_map.numbering)  # they hold all numbers, but of others
    with pytest.raises(SelectionError, match=r"numbered as 'a: \(test\) \+ 0', those of the labels as 'a: \(train\)"):
        join({"a": CropDataset(trained, "query")}, labels)


def people_and_cameras(dataset: CropDataset) -> tuple[list[int], list[int]]:
    return np.unique(dataset.pids).tolist(), np.unique(dataset.camids).tolist()


def test_joined_data_sets_are_joined_without_people_that_collide(trained: Path, tmp_path: Path) -> None:
    train = CropDataset(trained, "train")
    others = {}
    for frame, name in enumerate("bcd"):
        crop = f"bounding_box_train/00003_c000s0_{frame}.jpg"
        folder = pack_folder(write_crops(tmp_path / f"{name}-crops", [crop]), tmp_path / name, name=name)
        others[name] = CropDataset(folder, "train")
    first, second = join({"1": train, "2": others["b"]}), join({"1": others["c"], "2": others["d"]})
    people, cameras = people_and_cameras(join({"x": first, "y": second}))
    assert people == [3, 5, 9, 1_000_003, 10_000_003, 11_000_003]
    assert cameras == [0, 21, 1000, 10_000, 11_000]
    again = join({"1": CropDataset(trained, "train", select=Selection(pids=[3])), "2": others["b"]})
    assert people_and_cameras(join({"x": first, "y": again})) == people_and_cameras(first), "joined in the same way"
    assert people_and_cameras(join({"x": join({"a": train}), "y": train})) == people_and_cameras(train)


def test_near_and_far_are_joined(trained: Path, web: WebServer) -> None:
    near = CropDataset(trained, "train", reading=QUICK)
    far = CropDataset(f"{web.url}/entire-id", "gallery", reading=QUICK)
    for joined in (join({"a": near, "b": far}), join({"b": far, "a": near})):
        some = pickle.loads(pickle.dumps(joined))
        keys = {"a": near.keys, "b": far.keys}
        assert some.keys == [key for name in joined.source_names for key in keys[name]]
        assert [some.key(row) for row in range(len(some))] == some.keys
        assert some[7]["pid"] == joined.pids[7]


def test_transforms_that_are_equal_are_joined(trained: Path) -> None:
    parts = {name: CropDataset(trained, name, transform=on_pil(shift)) for name in ("train", "query")}
    assert len({id(part.transform) for part in parts.values()}) == 2
    assert join(parts).transform == on_pil(shift)


def test_versions_are_not_joined_without_a_word(trained: Path, web: WebServer, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", [f"bounding_box_train/00003_c021s0_{frame}.jpg" for frame in range(5, 9)], 700)
    pack_folder(tmp_path / "crops", tmp_path / "next", version="1.1.0", previous=trained)
    old = CropDataset(trained, "train", reading=QUICK)
    new = CropDataset(f"{web.url}/next", "train", reading=QUICK)
    with pytest.warns(RuntimeWarning, match="'1' and '2' look like sister sets"):
        assert len(join({"1": old, "2": new}).label_map) == 6
    gallery = CropDataset(f"{web.url}/next", "gallery", reading=QUICK)
    assert len(join({"1": old, "2": gallery}).label_map) == 7


def test_what_cannot_be_joined(trained: Path, tmp_path: Path) -> None:
    train = CropDataset(trained, "train")
    with pytest.raises(ValueError, match="at least one"):
        join({})
    with pytest.raises(ValueError, match="the same transform"):
        join({"a": train, "b": CropDataset(trained, "query", decode=False)})
    table = "path,pid,camid,split\n" + "".join(f"{pid}.jpg,{pid},0,train\n" for pid in (0, 2_000_000_000))
    source = write_crops(tmp_path / "more", ["0.jpg", "2000000000.jpg"])
    (source / "crops.csv").write_text(table)
    large = CropDataset(pack_folder(source / "crops.csv", tmp_path / "other"), "train")
    with pytest.raises(SelectionError, match="do not fit into 32 bits"):
        join({"a": large, "b": train})


# --- random numbers ---


def test_draws_repeat_whatever_was_drawn_before(trained: Path) -> None:
    dataset = CropDataset(trained, "train", transform=numbers)
    first = dataset[Draw(2, (0, 1, 5, 2))]["image"]
    assert first[:3].tolist() == [48, 24, 3]
    dataset[4]
    assert np.array_equal(dataset[Draw(2, (0, 1, 5, 2))]["image"], first)
    assert np.array_equal(dataset.__getitems__([4, Draw(2, (0, 1, 5, 2))])[1]["image"], first)
    assert not np.array_equal(dataset[Draw(2, (0, 1, 5, 3))]["image"], first)
    assert not np.array_equal(dataset[2]["image"], dataset[2]["image"])


def test_draw_is_a_number_that_travels() -> None:
    draw = pickle.loads(pickle.dumps(Draw(7, (1, 2))))
    assert (draw, draw.seed, [10, 20][Draw(1, (0,))], hash(draw)) == (7, (1, 2), 20, hash(7))
    assert draw.generator().integers(1 << 40) == Draw(3, (1, 2)).generator().integers(1 << 40)


def test_numbers_without_a_seed_follow_torch(trained: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    drawn = [CropDataset(trained, "train", transform=numbers)[0]["image"].tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    torch.manual_seed(4)
    assert CropDataset(trained, "train", transform=numbers)[0]["image"].tolist() != drawn[0]


def shift(image: Image.Image) -> Any:
    """Something in the manner of torchvision."""
    import torch

    return torch.cat([torch.tensor(image.size), torch.rand(3)])


def test_transforms_of_pil_images_repeat_and_leave_torch_alone(trained: Path) -> None:
    torch = pytest.importorskip("torch")
    dataset = CropDataset(trained, "train", transform=on_pil(shift))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = dataset[Draw(1, (4,))]["image"]
    assert first[:2].tolist() == [24, 48]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert (dataset[Draw(1, (4,))]["image"] == first).all()
    assert (dataset[Draw(1, (5,))]["image"] != first).any()
    assert pickle.loads(pickle.dumps(dataset)).transform == dataset.transform


def test_a_transform_that_takes_an_image_alone_is_told_of_on_pil(trained: Path) -> None:
    with pytest.raises(TypeError, match="positional argument") as caught:
        CropDataset(trained, "train", transform=shift)[0]
    assert "on_pil" in caught.value.__notes__[0]


def test_a_transform_that_fails_leaves_torch_alone(trained: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        CropDataset(trained, "train", transform=on_pil(lambda _: 1 // 0))[0]
    assert torch.equal(torch.get_rng_state(), state)


# --- corrupt crops ---


def spoil(folder: Path, split: str, rows: list[int], data: bytes = b"\0\0\0\0") -> None:
    """Write over the start of images, in place."""
    with CropReader(folder, split) as reader:
        for row in rows:
            place = reader.meta.slice(row, 1).to_pylist()[0]
            with (folder / place["shard"]).open("r+b") as shard:
                shard.seek(place["offset"])
                shard.write(data)


def test_corrupt_crops_raise(packed: Path) -> None:
    spoil(packed, "gallery", [5])
    dataset = CropDataset(packed, "gallery")
    where = r"row 5, at byte [\d,]+ of data/gallery/asia-00000\.parquet"
    for read in (lambda: dataset[5], lambda: dataset.__getitems__([4, 5, 6])):
        with pytest.raises(ImageDecodeError, match=where) as caught:
            read()
        assert caught.value.key == dataset.index.key(5)
    verified = CropDataset(packed, "gallery", reading=ReadOptions(verify=True))
    for read in (lambda: verified[5], lambda: verified.__getitems__([4, 5, 6])):
        with pytest.raises(CorruptCropError, match=r"asia-00000\.parquet.*row 5"):
            read()


@pytest.mark.parametrize("verify", [False, True])
def test_corrupt_crops_are_named_by_their_row_in_the_shard(packed: Path, verify: bool) -> None:
    spoil(packed, "gallery", [17])
    some = CropDataset(packed, "gallery", select=Selection(pids=[0, 1]), reading=ReadOptions(verify=verify))
    joined = join({"query": CropDataset(packed, "query", reading=some.reading), "gallery": some})
    assert some.index.places[9] == 1
    for read in (lambda: some[9], lambda: joined[12 + 9]):
        with pytest.raises((CorruptCropError, ImageDecodeError), match=r"gallery/europe-00000\.parquet") as caught:
            read()
        assert "row 1, at byte" in str(caught.value)


@pytest.mark.parametrize("verify", [False, True])
def test_corrupt_crops_are_left_out_of_batches(packed: Path, verify: bool) -> None:
    spoil(packed, "gallery", [5, 6])
    dataset = CropDataset(packed, "gallery", reading=ReadOptions(verify=verify, on_corrupt="skip"))
    with pytest.warns(RuntimeWarning, match="left out: .*row 5"):
        assert [item["row"] for item in dataset.__getitems__([4, 5, 7])] == [4, 7]
    with pytest.warns(RuntimeWarning, match="row 5"):
        assert [item["row"] for item in dataset.__getitems__([5, 4, 5])] == [4]
    assert dataset.num_skipped == 3
    with (
        pytest.warns(RuntimeWarning, match="row 5"),
        pytest.raises((CorruptCropError, ImageDecodeError), match="row 6"),
    ):
        dataset.__getitems__([5, 6])
    with pytest.raises((CorruptCropError, ImageDecodeError)):
        dataset[5]


def test_a_corrupt_first_crop_is_a_crop_like_any_other(packed: Path, web: WebServer) -> None:
    dataset = CropDataset(packed, "gallery", reading=ReadOptions(verify=True, on_corrupt="skip"))
    firsts = np.flatnonzero(dataset.index.places == 0).tolist()
    spoil(packed, "gallery", firsts)
    far = ReadOptions(QUICK.fetch, on_corrupt="skip")
    for some in (dataset, CropDataset(f"{web.url}/entire-id", "gallery", reading=far)):
        with pytest.warns(RuntimeWarning, match="left out"):
            assert [item["row"] for item in some.__getitems__([*firsts, 1, 23])] == [1, 23]
        assert some.num_skipped == len(firsts)


def claim_too_much(data: bytes) -> bytes:
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + data[frame + 9 :]


def end_early(data: bytes) -> bytes:
    middle = (data.rindex(b"\xff\xda") + len(data)) // 2
    return data[:middle] + b"\xff\xd9" + data[middle + 2 :]


@pytest.mark.parametrize("damage", [claim_too_much, end_early])
def test_crops_that_pillow_would_pass_or_refuse_in_its_own_way_are_corrupt(
    packed: Path, damage: Callable[[bytes], bytes]
) -> None:
    with CropReader(packed, "gallery") as reader:
        data = damage(reader.read(5))
    spoil(packed, "gallery", [5], data)
    with pytest.raises(ImageDecodeError, match="row 5, at byte"):
        CropDataset(packed, "gallery")[5]
    with CropReader(packed, "gallery") as reader, pytest.raises(ImageDecodeError):
        reader.pixels(5)
    skipping = CropDataset(packed, "gallery", reading=ReadOptions(on_corrupt="skip"))
    with pytest.warns(RuntimeWarning, match="left out: .*row 5"):
        assert [item["row"] for item in skipping.__getitems__([4, 5, 7])] == [4, 7]


def test_what_to_do_about_corrupt_crops_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="not 'drop'"):
        ReadOptions(on_corrupt="drop")


def test_shard_that_was_rewritten_is_never_skipped(packed: Path) -> None:
    dataset = CropDataset(packed, "gallery", reading=ReadOptions(on_corrupt="skip"))
    shard = packed / "data/gallery/asia-00000.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ManifestError, match="the shard was rewritten"):
        dataset.__getitems__([0, 1, 23])


# --- processes ---


def test_pickle_is_small_however_many_rows(tmp_path: Path) -> None:
    sizes = []
    for people in (2, 40):
        source = write_crops(tmp_path / f"crops{people}", crop_names(people))
        dataset = CropDataset(
            pack_folder(source, tmp_path / f"{people}"), "gallery", labels=LabelMap(tuple(range(40)), "test")
        )
        sizes.append(len(pickle.dumps(dataset)))
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.index.table.equals(dataset.index.table)
        assert copy.labels.tolist() == dataset.labels.tolist()
        assert copy.key(7) == dataset.key(7)
        assert np.array_equal(copy[7]["image"], dataset[7]["image"])
    assert sizes[1] < sizes[0] + 50
    assert sizes[1] < 2000


def test_copy_without_its_file_reads_the_data_set_again(trained: Path, tmp_path: Path) -> None:
    train = CropDataset(trained, "train", select=Selection(cameras=[21]))
    joined = join({"a": train, "b": CropDataset(trained, "gallery", select=Selection(pids=[2]))})
    for dataset in (train, joined):
        expected = dataset.keys
        sent = pickle.dumps(dataset)
        folder = dataset.index._mapped.folder
        assert folder.is_dir()
        dataset.index._mapped = None
        assert not folder.exists()
        copy = pickle.loads(sent)
        assert copy.keys == expected
        assert np.array_equal(copy.pids, dataset.pids)
        assert np.array_equal(copy.sources, dataset.sources)
        assert pickle.loads(pickle.dumps(copy)).index.table.equals(copy.index.table), "a copy can be sent on"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_loader(trained: Path, workers: int, context: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    if not workers and context != "fork":
        pytest.skip("no worker to be started")
    joined = join({name: CropDataset(trained, name, transform=numbers) for name in ("train", "gallery")})
    expected = list(joined)
    draws = [[Draw(row, (9, row)) for row in range(start, start + 5)] for start in range(0, 30, 5)]
    loader = torch_data.DataLoader(
        joined, batch_sampler=draws, num_workers=workers, multiprocessing_context=context if workers else None
    )
    drawn: list[list[int]] = []
    for batch in loader:
        assert batch["label"].dtype == batch["pid"].dtype
        for row, pid, label, image in zip(batch["row"], batch["pid"], batch["label"], batch["image"], strict=True):
            assert (pid, label) == (expected[row]["pid"], expected[row]["label"])
            drawn.append(image.tolist())
    alone = [joined[draw]["image"].tolist() for batch in draws for draw in batch]
    assert drawn == alone


def test_workers_draw_differently(trained: Path) -> None:
    torch = pytest.importorskip("torch")
    dataset = CropDataset(trained, "train", transform=numbers)
    dataset[0]  # the parent's generator is not the workers'
    epochs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="fork")
        epochs.append([image.tolist() for batch in loader for image in batch["image"]])
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert len({tuple(image) for image in epochs[0]}) == 6


def test_remote_data_set_in_a_worker(trained: Path, web: WebServer) -> None:
    dataset = CropDataset(f"{web.url}/entire-id", "train", reading=QUICK)
    expected = dataset.__getitems__([0, 5])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(dataset.__getitems__, ([0, 5],))
    assert [item.pop("image").tolist() for item in found] == [item.pop("image").tolist() for item in expected]
    assert found == expected


def test_torch_is_not_needed(packed: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import entire_id; "
        "data = entire_id.CropDataset(sys.argv[1], 'gallery', transform=lambda pixels, rng: rng.random()); "
        "data.__getitems__([0, 1]); entire_id.on_pil(lambda image: image)(data.index and __import__('numpy').zeros("
        "(2, 2, 3), 'uint8'), None); print(len(data))"
    )
    command = [sys.executable, "-c", code, str(packed)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "24\n"


def test_opening_does_not_import_pandas(packed: Path) -> None:
    code = (
        "import sys, entire_id; from entire_id.loading.dataset import Selection; "
        "data = entire_id.CropDataset(sys.argv[1], 'gallery', select=Selection(cameras=[0])); data[0]; data.key(0); "
        "entire_id.join({'a': data}); print({'pandas', 'pyarrow.compute'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(packed)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_json_of_labels_is_readable() -> None:
    assert json.loads(LabelMap((3, 5), "train").to_json()) == {"numbering": "train", "pids": [3, 5]}
    assert entire_id.LabelMap is LabelMap


def test_images_of_any_kind(tmp_path: Path) -> None:
    source = write_crops(tmp_path / "crops", crop_names(people=1))
    (source / "query/00000_c000s0_760487.jpg").write_bytes(image_bytes(3, kind="PNG"))
    dataset = CropDataset(pack_folder(source, tmp_path / "entire-id"), "query")
    assert {item["image"].shape for item in dataset} == {(48, 24, 3)}
