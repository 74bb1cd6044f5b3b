"""Streams of identity batches: every crop once, the same for any workers and ranks, and resumed exactly."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from entire_id.errors import (
    CorruptCropError,
    ImageDecodeError,
    ManifestError,
    SamplingError,
    SelectionError,
    SplitNotFoundError,
)
from entire_id.loading.dataset import CropDataset, ReadOptions
from entire_id.loading.files import open_files
from entire_id.loading.index import fetch_manifest
from entire_id.loading.lanes import Unit
from entire_id.loading.selection import LabelMap, Selection
from entire_id.loading.stream import PKStream, StreamOptions
from entire_id.loading.transforms import resize
from entire_id.loading.units import UnitReader
from entire_id.shards.manifest import read_manifest

from builders import image_bytes, many_crops, pack_folder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

P, K = 4, 4
Batch = tuple[tuple[int, ...], tuple[bool, ...]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 gallery crops of 60 people in four shards of several row groups."""
    home = tmp_path_factory.mktemp("stream")
    return pack_folder(many_crops(home / "source", people=60, shots=40), home / "packed", shard_rows=700)


def stream_of(folder: Path | str, **options: Any) -> PKStream:
    mixing = {"pool_rows": 200, "unit_groups": 1, "lanes": 4} | options.pop("mixing", {})
    return PKStream(folder, "gallery", P, K, **{"decode": False} | options, options=StreamOptions(**mixing))


def batches(stream: PKStream, workers: int = 0, num: int | None = None) -> list[Batch]:
    """Which crops each batch shows, and which of them are padding."""
    loader: Iterator[dict[str, Any]] = iter(DataLoader(stream, batch_size=None, num_workers=workers))
    found = []
    for batch in loader:
        found.append((tuple(batch["row"].tolist()), tuple(batch["padded"].tolist())))
        if len(found) == num:
            break
    del loader
    return found


def shown_once(found: list[Batch]) -> list[int]:
    return sorted(row for rows, padded in found for row, is_padded in zip(rows, padded, strict=True) if not is_padded)


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[Batch]:
    return batches(stream_of(folder))


def test_an_epoch_shows_every_crop_once_and_nobody_twice_in_a_batch(folder: Path, whole: list[Batch]) -> None:
    pids = CropDataset(folder, "gallery").pids
    assert shown_once(whole) == list(range(2400))
    for rows, _ in whole:
        people = pids[list(rows)].reshape(-1, K)
        assert (people == people[:, :1]).all()
        assert len(set(people[:, 0].tolist())) == len(people) <= P
    assert sum(len(rows) == P * K for rows, _ in whole) > 0.4 * len(whole)


def test_one_lane_has_full_batches_to_the_end(folder: Path) -> None:
    found = batches(stream_of(folder, mixing={"lanes": 1}))
    assert len(found) == 2400 // (P * K)
    assert {len(rows) for rows, _ in found} == {P * K}


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (1, 4), (2, 0), (2, 2), (4, 0)])
def test_ranks_and_workers_share_one_sequence(folder: Path, whole: list[Batch], world_size: int, workers: int) -> None:
    parts = [
        batches(stream_of(folder, rank=rank, world_size=world_size), workers=workers) for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1, "ranks end together"
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_goes_on_after_any_batch_whatever_reads_it(folder: Path, whole: list[Batch], seed: int) -> None:
    rng = random.Random(seed)
    workers, later_workers = rng.choice([0, 1, 2, 4]), rng.choice([0, 1, 2, 4])
    world_size, later_size = rng.choice([1, 2]), rng.choice([1, 2, 4])
    if later_size * max(later_workers, 1) > 4:
        later_workers = 0
    if world_size * max(workers, 1) > 4:
        workers = 2
    num = rng.randrange(0, len(whole) // 4) * 4 // world_size
    stream = stream_of(folder, rank=0, world_size=world_size)
    done = batches(stream, workers, num) if num else []
    state = pickle.loads(pickle.dumps(stream.state_dict(len(done))))
    parts = []
    for rank in range(later_size):
        later = stream_of(folder, rank=rank, world_size=later_size)
        later.load_state_dict(state)
        parts.append(batches(later, later_workers))
    assert [batch for step in zip(*parts, strict=True) for batch in step] == whole[num * world_size :]


def test_the_epoch_after_a_resumed_one_is_whole(folder: Path) -> None:
    stream = stream_of(folder)
    batches(stream, num=5)
    later = stream_of(folder)
    later.load_state_dict(stream.state_dict(5))
    loader = DataLoader(later, batch_size=None, num_workers=2, persistent_workers=True)
    num = [len(list(loader))]
    later.set_epoch(1)
    second = [tuple(batch["row"].tolist()) for batch in loader]
    fresh = stream_of(folder)
    fresh.set_epoch(1)
    assert second == [rows for rows, _ in batches(fresh)]
    assert num[0] == len(batches(stream_of(folder))) - 5


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_whole_iteration_is_followed_by_the_next_epoch(folder: Path, workers: int, persistent: bool) -> None:
    expected = []
    for epoch in range(3):
        fresh = stream_of(folder)
        fresh.set_epoch(epoch)
        expected.append([rows for rows, _ in batches(fresh)])
    stream = stream_of(folder)
    stream.load_state_dict(stream_of(folder).state_dict(5))
    loader = DataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=persistent)
    first, second, third = ([tuple(batch["row"].tolist()) for batch in loader] for _ in range(3))
    assert first == expected[0][5:]
    assert second == expected[1]
    assert third == expected[2]
    assert (stream.state_dict(7)["epoch"], stream.state_dict(7)["num_batches"]) == (2, 7)
    stream.set_epoch(2)  # it was whole, and shall be again
    assert tuple(next(iter(loader))["row"].tolist()) == expected[2][0]
    assert [tuple(batch["row"].tolist()) for batch in loader] == expected[2], "what is left early begins again"


def test_after_a_whole_iteration_any_number_of_workers_moves_on(folder: Path) -> None:
    stream = stream_of(folder)
    found = [batches(stream, workers) for workers in (2, 4, 0)]
    for epoch, shown in enumerate(found):
        fresh = stream_of(folder)
        fresh.set_epoch(epoch)
        assert shown == batches(fresh)


def test_epochs_and_seeds_differ_and_repeat(folder: Path, whole: list[Batch]) -> None:
    other = stream_of(folder)
    other.set_epoch(1)
    second = batches(other)
    assert second != whole
    assert shown_once(second) == shown_once(whole)
    assert batches(stream_of(folder, seed=1)) != whole
    assert batches(stream_of(folder)) == whole


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.append(pixels.mean((0, 1)), rng.random())


def test_a_resumed_stream_draws_the_same_augmentations(folder: Path) -> None:
    def images(stream: PKStream, workers: int) -> list[torch.Tensor]:
        return [batch["image"] for batch in DataLoader(stream, batch_size=None, num_workers=workers)]

    expected = images(stream_of(folder, decode=True, transform=noisy), 0)
    assert expected[0].shape == (P * K, 4)
    stream = stream_of(folder, decode=True, transform=noisy)
    batches(stream, 2, 7)
    later = stream_of(folder, decode=True, transform=noisy)
    later.load_state_dict(stream.state_dict(7))
    rest = images(later, 4)
    assert len(rest) == len(expected) - 7
    assert all(torch.equal(one, other) for one, other in zip(rest, expected[7:], strict=True))


def test_batches_carry_labels_and_pixels(folder: Path) -> None:
    crops = CropDataset(folder, "gallery")
    stream = stream_of(folder, decode=True)
    batch = next(iter(stream))
    rows = batch["row"]
    assert (batch["pid"] == crops.pids[rows]).all()
    assert (batch["camid"] == crops.camids[rows]).all()
    assert (batch["label"] == crops.labels[rows]).all()
    assert stream.label_map == crops.label_map
    assert all((image == crops[row]["image"]).all() for image, row in zip(batch["image"], rows.tolist(), strict=True))


def tall(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return resize(pixels, 64, 32) + rng.integers(0, 2, (64, 32, 1), np.uint8)


def tensor(pixels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(tall(pixels, rng))


def words(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array(["a", "b"])


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("transform", [tall, tensor])
def test_workers_hand_over_plain_tensors_of_the_same_values(folder: Path, transform: Any, context: str) -> None:
    streams = (stream_of(folder, decode=True, transform=transform, mixing={"lanes": 2}) for _ in range(2))
    loaders = [
        DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context if workers else None)
        for stream, workers in zip(streams, (0, 2), strict=True)
    ]
    for number, (own, handed) in enumerate(zip(*loaders, strict=False)):
        for name, value in own.items():
            assert type(handed[name]) is torch.Tensor, name
            assert (handed[name].dtype, handed[name].shape) == (value.dtype, value.shape)
            assert torch.equal(handed[name], value)
            handed[name].zero_()  # it is the loop's own
        if number == 5:
            break


def test_what_tensors_cannot_hold_is_handed_over_all_the_same(folder: Path) -> None:
    stream = stream_of(folder, decode=True, transform=words, mixing={"lanes": 2})
    batch = next(iter(DataLoader(stream, batch_size=None, num_workers=2)))
    assert batch["image"].tolist() == [["a", "b"]] * len(batch["pid"])


def test_a_uniform_stream_shows_every_crop_once_in_batches_of_p_times_k(folder: Path) -> None:
    found = batches(stream_of(folder, mixing={"uniform": True, "lanes": 1}))
    assert shown_once(found) == list(range(2400))
    assert {len(rows) for rows, _ in found} == {P * K}
    pids = CropDataset(folder, "gallery").pids
    assert any(len(set(pids[list(rows)].tolist())) > P for rows, _ in found)


def test_a_selection_leaves_out_the_rest(folder: Path) -> None:
    select = Selection(cameras=[0, 2], pids=range(30))
    crops = CropDataset(folder, "gallery")
    expected = np.flatnonzero(np.isin(crops.camids, [0, 2]) & (crops.pids < 30)).tolist()
    stream = stream_of(folder, select=select, mixing={"lanes": 1})
    assert shown_once(batches(stream)) == expected
    assert stream.label_map.pids == tuple(range(30))
    with pytest.raises(SelectionError, match="no continent 'mars'"):
        stream_of(folder, select=Selection(continents=["mars"]))
    with pytest.raises(SelectionError, match="no person 99"):
        stream_of(folder, select=Selection(pids=[99]))


@pytest.mark.parametrize("uniform", [False, True])
def test_splits_that_are_named_together_are_one_stream(msmt: Path, uniform: bool) -> None:
    def stream(split: str = "val+train", **options: Any) -> PKStream:
        mixing = StreamOptions(lanes=2, unit_groups=1, uniform=uniform)
        return PKStream(msmt, split, p=2, k=2, decode=False, options=mixing, **options)

    crops = CropDataset(msmt, "val+train")
    whole = batches(stream())
    assert shown_once(whole) == list(range(len(crops))), "rows are counted as there"
    for batch in stream():
        assert np.array_equal(batch["pid"], crops.pids[batch["row"]])
    assert stream().label_map == crops.label_map
    for num in (2, 4):
        first = stream(rank=0, world_size=1)
        done = batches(first, 2, num)
        later = stream("val + train")
        later.load_state_dict(json.loads(json.dumps(first.state_dict(num))))
        assert done + batches(later) == whole
    with pytest.raises(SamplingError, match="split"):
        stream("train+val").load_state_dict(first.state_dict(num))


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(SplitNotFoundError):
        PKStream(folder, "train")
    with pytest.raises(SamplingError, match="60 identities of 'gallery' .* batch of p 61. .* p 60 or less"):
        PKStream(folder, "gallery", p=61)
    with pytest.raises(SamplingError, match="2 identities of 'gallery' in the selection .* p 2 or less"):
        PKStream(folder, "gallery", p=3, select=Selection(pids=[3, 5]))
    for options, match in (
        ({"k": 0}, "k 0 is not at least 1"),
        ({"seed": -1}, "^seed -1 is not at least 0$"),
        ({"options": StreamOptions(prefetch_units=-1)}, "^prefetch_units -1 is not at least 0$"),
        ({"options": StreamOptions(lanes=0)}, "lanes 0 is not at least 1"),
    ):
        with pytest.raises(SamplingError, match=match):
            PKStream(folder, "gallery", **{"p": 4} | options)
    for labels, match in (
        (LabelMap((0, 1), "test"), "have no label"),
        (LabelMap((), "test"), "have no label"),
        (LabelMap(tuple(range(60)), "train"), "numbered as 'test', those of the labels as 'train'"),
    ):
        with pytest.raises(SelectionError, match=match):
            PKStream(folder, "gallery", p=4, labels=labels)
    with pytest.raises(ValueError, match="takes pixels"):
        stream_of(folder, transform=noisy)


def test_lanes_that_cannot_be_are_refused_before_there_are_workers(folder: Path) -> None:
    with pytest.raises(SamplingError, match="3 ranks × 1 workers do not divide 4 lanes"):
        stream_of(folder, rank=0, world_size=3)
    with pytest.raises(SamplingError, match="units of 1 row groups cannot feed 500 lanes"):
        stream_of(folder, mixing={"lanes": 500})
    with pytest.raises(SamplingError, match="units of 1 row groups cannot feed 500 lanes"):
        stream_of(folder, rank=0, world_size=500, mixing={"lanes": None})
    with pytest.raises(SamplingError, match="units of 99 row groups cannot feed 8 lanes"):
        stream_of(folder, select=Selection(pids=range(20)), mixing={"unit_groups": 99, "lanes": 8})
    stream = stream_of(folder, mixing={"lanes": None})
    next(iter(stream))
    later = stream_of(folder, rank=0, world_size=2, mixing={"lanes": None})
    with pytest.raises(SamplingError, match="2 ranks × 1 workers do not divide 1 lanes"):
        later.load_state_dict(stream.state_dict(0))


def test_workers_that_do_not_divide_the_lanes_are_refused_when_they_begin(folder: Path) -> None:
    loader = DataLoader(stream_of(folder), batch_size=None, num_workers=3)
    with pytest.raises(SamplingError, match="1 ranks × 3 workers do not divide 4 lanes"):
        next(iter(loader))


def test_a_state_of_another_stream_is_refused(folder: Path) -> None:
    stream = stream_of(folder)
    batches(stream, num=3)
    state = stream.state_dict()
    assert state["num_batches"] == 3
    for change, match in (
        ({"seed": 1}, "seed"),
        ({"k": 2}, "k 2"),
        ({"lanes": 2}, "2 lanes"),
        ({"content": "x"}, "content"),
        ({"num_batches": 1, "world_size": 1}, "no whole number of steps"),
    ):
        with pytest.raises(SamplingError, match=match):
            stream_of(folder, rank=0, world_size=2).load_state_dict(state | change)
    with pytest.raises(SamplingError, match="no state of a PKStream"):
        stream.load_state_dict({"epoch": 1})
    batches(stream_of(folder), workers=2, num=3)
    other = stream_of(folder)
    batches(other, workers=2, num=3)
    with pytest.raises(SamplingError, match="ahead of the loop"):
        other.state_dict()


def flip_image_of(folder: Path, row: int) -> None:
    index = CropDataset(folder, "gallery").index
    path = folder / index.shards[index.shard_numbers[row]].path
    data = bytearray(path.read_bytes())
    data[int(index.offsets[row]) + 9] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = pack_folder(many_crops(tmp_path / "source", people=10, shots=12), tmp_path / "packed")
    flip_image_of(folder, 50)
    return folder


def test_a_corrupt_crop_is_named(damaged: Path) -> None:
    stream = stream_of(damaged, mixing={"lanes": 1}, reading=ReadOptions(verify=True))
    with pytest.raises(CorruptCropError, match=r"row 50, at byte [\d,]+"):
        batches(stream)


def test_a_corrupt_crop_gives_its_place_to_another_of_its_group(damaged: Path) -> None:
    reading = ReadOptions(verify=True, on_corrupt="skip")
    stream = stream_of(damaged, mixing={"lanes": 1}, reading=reading)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        shown = batches(stream)
    assert sum("row 50" in str(warning.message) for warning in found) == 1
    assert shown_once(shown) == [row for row in range(120) if row != 50]
    assert {len(rows) for rows, _ in shown} == {8, 16} or {len(rows) for rows, _ in shown} == {16}


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_corrupt_crops_that_were_left_out_are_counted_whoever_did(
    tmp_path: Path, workers: int, context: str | None
) -> None:
    folder = pack_folder(many_crops(tmp_path / "source", people=10, shots=12), tmp_path / "packed", shard_rows=50)
    for row in (10, 110):
        flip_image_of(folder, row)
    stream = stream_of(folder, mixing={"lanes": 2}, reading=ReadOptions(verify=True, on_corrupt="skip"))
    loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)
    assert stream.num_skipped == 0
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        rows = {row for _ in range(2) for batch in loader for row in batch["row"].tolist()}
    assert rows == set(range(120)) - {10, 110}
    assert stream.num_skipped >= 4, "two in each epoch, more where one of them also pads"
    if not workers:
        assert stream.num_skipped == sum("left out" in str(warning.message) for warning in found)


def test_a_crop_that_does_not_decode_is_named(tmp_path: Path) -> None:
    folder = pack_folder(many_crops(tmp_path / "source", people=10, shots=12), tmp_path / "packed")
    index = CropDataset(folder, "gallery").index
    path = folder / index.shards[0].path
    data = bytearray(path.read_bytes())
    start = int(index.offsets[7])
    data[start : start + int(index.lengths[7])] = bytes(int(index.lengths[7]))
    path.write_bytes(data)
    with pytest.raises(ImageDecodeError, match=f"{index.key(7)}.*row 7 of"):
        batches(stream_of(folder, decode=True, mixing={"lanes": 1}))


def test_a_shard_that_was_rewritten_is_refused(damaged: Path) -> None:
    index = CropDataset(damaged, "gallery").index
    path = damaged / index.shards[0].path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ManifestError, match="the manifest knows another file"):
        batches(stream_of(damaged, mixing={"lanes": 1}))


def test_a_place_can_be_told_before_the_first_batch(folder: Path) -> None:
    stream = stream_of(folder)
    done = batches(stream, num=5)
    state = stream.state_dict()
    later = stream_of(folder)
    later.load_state_dict(state)
    assert later.state_dict() == state
    assert len(done) == state["num_batches"] == 5
    stream.set_epoch(1)
    assert (stream.state_dict()["epoch"], stream.state_dict()["num_batches"]) == (1, 0)
    with pytest.raises(SamplingError, match="num_batches -1 is not at least 0"):
        stream.state_dict(-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_place_beyond_what_was_handed_out_is_refused(folder: Path, workers: int) -> None:
    stream = stream_of(folder)
    num_batches = len(batches(stream, workers))
    assert stream.state_dict(num_batches)["num_batches"] == num_batches
    with pytest.raises(SamplingError, match=f"num_batches {num_batches + 1} is above {num_batches}"):
        stream.state_dict(num_batches + 1)


@pytest.mark.parametrize("pids", [np.arange(30), list(np.arange(30)), set(range(30))])
def test_a_state_is_text_whatever_the_selection_was_made_of(folder: Path, pids: Any) -> None:
    state = json.loads(json.dumps(stream_of(folder, select=Selection(pids=pids)).state_dict()))
    assert state["select"]["pids"] == list(range(30))
    stream_of(folder, select=Selection(pids=range(30))).load_state_dict(state)


def test_another_epoch_than_the_resumed_one_is_whole_even_if_it_comes_back(folder: Path, whole: list[Batch]) -> None:
    stream = stream_of(folder)
    stream.load_state_dict(stream_of(folder).state_dict(7))
    stream.set_epoch(0)
    assert batches(stream, num=3) == whole[7:10]
    stream.set_epoch(1)
    stream.set_epoch(0)
    assert batches(stream, num=3) == whole[:3]


def test_what_is_iterated_is_settled_when_the_iteration_begins(folder: Path, whole: list[Batch]) -> None:
    stream = stream_of(folder)
    begun = iter(stream)
    stream.set_epoch(1)
    assert tuple(next(begun)["row"].tolist()) == whole[0][0]


def test_workers_that_live_on_take_the_lanes_of_a_state(folder: Path) -> None:
    ours = {"lanes": None}
    expected = batches(stream_of(folder, mixing=ours), workers=4)
    state_of_four = stream_of(folder, mixing=ours)
    batches(state_of_four, workers=4, num=3)
    stream = stream_of(folder, mixing=ours)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    next(iter(loader))
    stream.load_state_dict(state_of_four.state_dict(3))
    assert [tuple(batch["row"].tolist()) for batch in loader] == [rows for rows, _ in expected[3:]]


def test_a_copy_tells_its_own_workers_the_epoch(folder: Path) -> None:
    stream = pickle.loads(pickle.dumps(stream_of(folder)))
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = [tuple(batch["row"].tolist()) for batch in loader]
    stream.set_epoch(1)
    second = [tuple(batch["row"].tolist()) for batch in loader]
    assert first != second
    with pytest.raises(SamplingError, match="ahead of the loop"):
        stream.state_dict()


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_give_the_same(folder: Path, whole: list[Batch], context: str) -> None:
    stream = stream_of(folder)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert [tuple(batch["row"].tolist()) for batch in loader] == [rows for rows, _ in whole]
    assert stream.state_dict(1)["epoch"] == 0
    second = stream_of(folder)
    second.set_epoch(1)
    assert tuple(next(iter(loader))["row"].tolist()) == batches(second, num=1)[0][0]


def test_a_selection_of_nothing_is_no_empty_epoch(folder: Path) -> None:
    with pytest.raises(SelectionError, match="no crop is left"):
        batches(stream_of(folder, select=Selection(cameras=[99])))


def test_lanes_of_which_a_selection_leaves_one_too_little_are_refused_with_the_cure(folder: Path) -> None:
    select = Selection(pids=range(20))
    with pytest.raises(SamplingError, match="groups are left for .* Use fewer lanes or workers"):
        batches(stream_of(folder, select=select, mixing={"lanes": 8}))
    assert batches(stream_of(folder, select=select, mixing={"lanes": 1}))


def test_shards_without_anybody_wanted_are_left_alone(folder: Path) -> None:
    shard = next(shard for shard in read_manifest(folder).shards if shard.split == "gallery")
    meta = [path for path in sorted(folder.glob("meta/gallery/*")) if path.name != Path(shard.meta_path).name]
    hidden = [path.rename(path.with_suffix(".hidden")) for path in meta]
    try:
        stream = stream_of(folder, select=Selection(pids=shard.pids[:5]), mixing={"lanes": 2})
        rows = shown_once(batches(stream))
    finally:
        for path, name in zip(hidden, meta, strict=True):
            path.rename(name)
    assert rows == np.flatnonzero(np.isin(CropDataset(folder, "gallery").pids, shard.pids[:5])).tolist()


def test_crops_that_are_not_wanted_are_not_kept(folder: Path) -> None:
    files = open_files(folder)
    manifest = fetch_manifest(files)
    shards = [shard for shard in manifest.shards if shard.split == "gallery"]
    reader = UnitReader(files, manifest, shards, Selection(cameras=[1]), verify=True)
    unit = Unit(1, (0,), shards[1].row_groups[0])
    is_wanted = reader.labels(unit).pids >= 0
    crops = reader.read_group(unit.shard, 0)
    assert 0 < is_wanted.sum() < len(is_wanted)
    assert [len(crop) > 0 for crop in crops if isinstance(crop, bytes)] == is_wanted.tolist()
    needed = np.arange(len(crops)) == 7
    assert [len(crop) > 0 for crop in reader.read_group(unit.shard, 0, needed)] == needed.tolist()


def test_lanes_end_together_whatever_the_pool(folder: Path) -> None:
    mixing = {"pool_rows": 1, "unit_groups": 2, "lanes": 2}
    parts = [batches(stream_of(folder, rank=rank, world_size=2, mixing=mixing)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    assert shown_once([*parts[0], *parts[1]]) == list(range(2400))


def test_a_worker_keeps_no_more_than_its_pool_and_what_is_under_way(folder: Path) -> None:
    epoch_crops = 2400 * len(image_bytes())
    stream = stream_of(folder, mixing={"lanes": 1, "pool_rows": 200, "prefetch_units": 0})
    list(stream)  # labels and buffers are there
    tracemalloc.start()
    try:
        for batch in stream:
            del batch
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    group = max(max(shard.row_groups) for shard in read_manifest(folder).shards)
    crop = len(image_bytes()) + 80  # what Python adds, and the number behind each picture
    assert peak < 1.5 * (200 + 3 * group) * crop + 300_000 < epoch_crops
