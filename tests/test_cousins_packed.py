"""Other data sets from their crops to their scores: packed, loaded, joined and scored by the code for ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import fsspec
import numpy as np
import pytest

from entire_id.cli.packing import LayoutOption
from entire_id.evaluation.ranking import evaluate
from entire_id.hub.statistics import collect_statistics
from entire_id.loading.dataset import CropDataset
from entire_id.loading.joining import join
from entire_id.loading.reader import CropReader
from entire_id.loading.sampler import PKSampler
from entire_id.loading.selection import Selection
from entire_id.loading.stream import PKStream
from entire_id.records import DISTRACTOR_PID, JUNK_PID, Reason
from entire_id.shards.manifest import read_manifest
from entire_id.shards.pack import PackConfig, PackReport, pack
from entire_id.shards.verify import verify
from entire_id.sources.layouts import LAYOUTS, open_source

from brute_force import single_shot_ranks
from builders import StoppedError, image_bytes, rejected_rows, settle, write_zip
from cousins import draw_crops, folder_name, occluded_by_copying, small_tree, write_tree


def pack_small(tmp_path: Path, name: str, **options: object) -> PackReport:
    tree = write_tree(tmp_path / f"{name}-crops" / folder_name(LAYOUTS[name]), draw_crops(small_tree(name)))
    return pack(open_source(tree, name), tmp_path / name, PackConfig(**options))


def labels_of(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with CropReader(folder, split) as reader:
        return reader.pids, reader.camids


def market_rule(scores, query, gallery):
    """AP and first rank of each query by the rule of Market-1501's paper, from the names' own numbers."""
    for row, (pid, camid) in zip(scores, zip(*query, strict=True), strict=True):
        kept = [
            (-score, pid == other)
            for score, other, camera in zip(row.tolist(), *gallery, strict=True)
            if other != JUNK_PID and (pid, camid) != (other, camera)
        ]
        right = [rank for rank, (_, is_right) in enumerate(sorted(kept), 1) if is_right]
        if right:
            yield np.mean([found / rank for found, rank in enumerate(right, 1)]), right[0]


@pytest.mark.parametrize("name", ["market1501", "market1501-500k"])
def test_junk_is_ignored_and_distractors_are_wrong_as_the_official_protocol_has_it(name, tmp_path):
    report = pack_small(tmp_path, name, shard_rows=6)
    query, gallery = (labels_of(tmp_path / name, split) for split in ("query", "gallery"))
    assert ((gallery[0] == JUNK_PID).sum(), (gallery[0] == DISTRACTOR_PID).sum()) == (
        5,
        6 if name == "market1501" else 8,
    )
    assert report.junk == {"gallery": 5}
    rng = np.random.default_rng(3)
    features = [rng.normal(size=(len(pids), 8)).astype(np.float32) for pids, _ in (query, gallery)]
    features = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in features]
    scores = evaluate(*features, query[0], gallery[0], query[1], gallery[1], protocol="market1501")
    expected = np.array(list(market_rule(features[0] @ features[1].T, query, gallery)))
    assert scores.mAP == pytest.approx(expected[:, 0].mean(), abs=1e-6)
    assert scores.rank(1) == pytest.approx((expected[:, 1] == 1).mean())
    without = gallery[0] >= 0  # distractors do count
    easier = evaluate(features[0], features[1][without], query[0], gallery[0][without], query[1], gallery[1][without])
    assert easier.mAP > scores.mAP


def test_junk_and_distractors_are_nobody_from_packing_to_batches(tmp_path):
    report = pack_small(tmp_path, "market1501-500k", shard_rows=6)
    folder = tmp_path / "market1501-500k"
    manifest = read_manifest(folder)
    assert (manifest.splits["gallery"].rows, manifest.splits["gallery"].people) == (8 + 6 + 2 + 5, 4)
    assert max(shard.rows for shard in manifest.shards) <= 6  # distractors are placed one by one
    assert verify(folder).problems == ()
    assert report.rejected == {}
    gallery = CropDataset(folder, "gallery")
    assert len(gallery) == 8
    assert gallery.label_map.pids == (2, 3, 4, 5)
    pids = labels_of(folder, "gallery")[0]
    drawn = np.concatenate(list(PKSampler(pids, p=2, k=2)))
    assert (pids[drawn] >= 0).all()
    streamed = np.concatenate([batch["pid"] for batch in PKStream(folder, "gallery", p=2, k=2)])
    assert set(streamed.tolist()) <= {2, 3, 4, 5}
    everything = CropDataset(folder, "gallery", select=Selection(keep_junk=True))
    assert (len(everything), (everything.labels == -1).sum()) == (21, 13)
    both = join({"ours": CropDataset(folder, "train"), "theirs": everything})
    assert sorted(set(both.pids[both.pids < 0].tolist())) == [DISTRACTOR_PID, JUNK_PID]


def test_a_next_version_leaves_distractors_where_they_were(tmp_path):
    first = pack_small(tmp_path, "market1501-500k", shard_rows=6).manifest
    tree = tmp_path / "market1501-500k-crops/market1501-500k"
    config = PackConfig(version="1.1.0", shard_rows=6, name=first.name, previous=tmp_path / "market1501-500k")
    again = pack(open_source(tree, "market1501-500k"), tmp_path / "next", config)
    assert again.num_kept == len(first.shards)


def test_two_distractors_are_no_pair_and_each_is_somebody_of_its_own():
    query_pids, query_camids = np.array([1, DISTRACTOR_PID]), np.array([0, 0])
    gallery_pids = np.array([1, 1, DISTRACTOR_PID, DISTRACTOR_PID, DISTRACTOR_PID, 4, 4])
    gallery_camids = np.ones(7, np.int64)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    scores = evaluate(*features, query_pids, gallery_pids, query_camids, gallery_camids)
    assert scores.num_valid_query == 1
    shot = evaluate(*features, query_pids, gallery_pids, query_camids, gallery_camids, protocol="single_gallery_shot")
    named = gallery_pids.copy()
    named[2:5] = [11, 12, 13]
    values = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    values = values @ (features[1] / np.linalg.norm(features[1], axis=1, keepdims=True)).T
    labels = type("Named", (), {"query_pids": query_pids, "gallery_pids": named, "query_camids": query_camids})
    labels.gallery_camids, labels.query_in_gallery = gallery_camids, None
    ranks = single_shot_ranks(values, labels, 0, shot.protocol, "worst")
    assert shot.mAP == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-6)


def test_last_scores_alike_with_and_without_cameras_and_nothing_is_ignored(tmp_path):
    pack_small(tmp_path, "last")
    query, gallery = (labels_of(tmp_path / "last", split) for split in ("query", "gallery"))
    rng = np.random.default_rng(1)
    features = [rng.normal(size=(len(pids), 8)).astype(np.float32) for pids, _ in (query, gallery)]
    per_image = np.arange(len(query[0])), len(query[0]) + np.arange(len(gallery[0]))  # as other readers have it
    ours = evaluate(*features, query[0], gallery[0], query[1], gallery[1])
    theirs = evaluate(*features, query[0], gallery[0], *per_image)
    none = evaluate(*features, query[0], gallery[0], protocol="no_camera")
    assert ours.mAP == theirs.mAP == none.mAP
    assert ours.num_valid_query == len(query[0])
    train, val = (set(labels_of(tmp_path / "last", split)[0].tolist()) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_joined_sets_share_nobody_and_no_camera(tmp_path):
    names = ["market1501", "msmt17-v1", "cuhk03-np-detected", "last"]
    for name in names:
        pack_small(tmp_path, name)
    train = {name: CropDataset(tmp_path / name, "train") for name in names}
    joined = join(train)
    assert len(joined.label_map) == sum(len(one.label_map) for one in train.values())
    seen = [{*joined.camids[joined.sources == number].tolist()} for number in range(len(names))]
    assert sum(map(len, seen)) == len(set().union(*seen))


def train_crops(folder: Path, name: str, sizes: list[tuple[int, int]], first: int = 0) -> CropDataset:
    """Pack small crops of the given sizes in turn, their pictures from number `first` on."""
    paths = [path for path, data in small_tree(name).items() if not data]
    drawn = {path: image_bytes(n, sizes[n % len(sizes)]) for n, path in enumerate(paths, first)}
    tree = write_tree(folder / "crops" / folder_name(LAYOUTS[name]), (small_tree(name) | drawn).items())
    pack(open_source(tree, name), folder / "packed", PackConfig(shard_rows=4))
    return CropDataset(folder / "packed", "train")


MANY_SIZES = [(20 + n % 7, 40 + n % 11) for n in range(77)]
OTHER_SIZES = [(width + 1 + width % 2, height + 3) for width, height in MANY_SIZES]


@pytest.mark.parametrize(
    ("one", "other", "sizes", "first"),
    [
        ("dukemtmc-reid", "occluded-duke", [(24, 48)], 0),  # some of the same images
        ("msmt17-v1", "msmt17-v2", MANY_SIZES, 770),  # all images edited
    ],
)
def test_sister_sets_are_not_joined_without_a_word(tmp_path, one, other, sizes, first):
    sets = {one: train_crops(tmp_path / "1", one, sizes), other: train_crops(tmp_path / "2", other, sizes, first)}
    with pytest.warns(RuntimeWarning, match=f"'{one}' and '{other}' look like sister sets: .* leave one") as found:
        assert len(join(sets).label_map) == len(sets[one].label_map) + len(sets[other].label_map)
    assert [warning.filename for warning in found] == [__file__]


@pytest.mark.parametrize("sizes", [[(24, 48)], [(24, 48), (25, 48)], OTHER_SIZES])
def test_strangers_of_the_same_names_are_joined_in_silence(tmp_path, sizes):
    """The boxes of CUHK03 are among them: detected and labeled ones are called alike, and that is all."""
    mine = MANY_SIZES if sizes is OTHER_SIZES else sizes
    one = train_crops(tmp_path / "1", "cuhk03-np-detected", mine)
    other = train_crops(tmp_path / "2", "cuhk03-np-detected", sizes, 770)
    assert len(join({"one": one, "other": other}).label_map) == 4


def test_the_help_names_every_layout():
    assert set(re.findall(r"[a-z0-9-]+", get_args(LayoutOption)[1].help)) >= set(LAYOUTS)


def test_the_card_tells_junk_and_distractors_apart(tmp_path):
    manifest = pack_small(tmp_path, "market1501").manifest
    statistics = collect_statistics(tmp_path / "market1501", manifest)
    assert (statistics.junk, statistics.unlabelled) == ({"gallery": 5}, {"gallery": 6})
    assert sum(statistics.crops_per_identity["gallery"].values()) == 4


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn_occluded(tmp_path: Path) -> tuple[dict[str, bytes], Path, Path]:
    """Duke's crops, one of which two lists name and is no image; the lists; and what their authors' script makes."""
    duke = dict(draw_crops(small_tree("occluded-duke")))
    lists = {name: duke.pop(name) for name in list(duke) if name.endswith(".list")}
    both = set(lists["query.list"].split()) & set(lists["gallery.list"].split())
    extra = f"bounding_box_test/{lists['gallery.list'].decode().split()[-1]}"
    lists["query.list"] += extra.partition("/")[2].encode()
    duke[extra] = b"no image"
    assert len(both) == 1
    made = write_tree(tmp_path / "made" / "Occluded_Duke", occluded_by_copying(duke, lists).items())
    return duke, write_tree(tmp_path / "lists", lists.items()), made


@pytest.mark.parametrize(("kind", "format_"), [("folder", "parquet"), ("zip", "webdataset"), ("url", "parquet")])
def test_duke_with_the_lists_packs_to_the_bytes_of_the_folder_that_the_authors_script_makes(kind, format_, tmp_path):
    duke, lists, made = drawn_occluded(tmp_path)
    place: Path | str
    if kind == "zip":
        place = write_zip(tmp_path / "DukeMTMC-reID.zip", {f"DukeMTMC-reID/{name}": duke[name] for name in duke})
    elif kind == "url":
        place = "memory://DukeMTMC-reID"
        fsspec.filesystem("memory").pipe({f"/DukeMTMC-reID/{name}": data for name, data in duke.items()})
    else:
        place = write_tree(tmp_path / "DukeMTMC-reID", duke.items())
    config = PackConfig(format=format_, name="occluded-duke", shard_rows=6)
    theirs = pack(open_source(made, "occluded-duke"), tmp_path / "theirs", config)
    ours = pack(open_source(place, "occluded-duke", lists_path=lists), tmp_path / "ours", config)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert {split: part.rows for split, part in ours.manifest.splits.items()} == {"train": 4, "query": 6, "gallery": 14}
    assert verify(tmp_path / "ours").problems == ()
    assert (theirs.rejected, ours.rejected) == (
        {Reason.NOT_AN_IMAGE: 2},
        {Reason.NOT_AN_IMAGE: 2, Reason.OUTSIDE_SPLITS: 4 + 4},
    )
    told = [row["path"] for row in rejected_rows(tmp_path / "ours") if row["reason"] == "not-an-image"]
    (broken,) = (path for path, data in duke.items() if data == b"no image")
    assert [path.removeprefix("DukeMTMC-reID/") for path in told] == [broken] * 2  # a line a crop: where to look


def test_a_next_version_and_a_stopped_run_take_crops_of_two_splits_as_they_were(tmp_path):
    duke, lists, made = drawn_occluded(tmp_path)
    place = write_tree(tmp_path / "DukeMTMC-reID", duke.items())
    config = PackConfig(name="occluded-duke", shard_rows=6)
    first = pack(open_source(made, "occluded-duke"), tmp_path / "first", config).manifest
    settle()

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "packing" and done >= 18:
            raise StoppedError

    next_version = replace(config, version="1.1.0", previous=tmp_path / "first")
    for again in (config, next_version):
        out = tmp_path / f"out-{again.version}"
        with pytest.raises(StoppedError):
            pack(open_source(place, "occluded-duke", lists_path=lists), out, again, stop)
        report = pack(open_source(place, "occluded-duke", lists_path=lists), out, again)
        assert report.num_resumed > 0
        assert report.num_kept == (len(first.shards) if again.previous else 0)
        assert report.manifest.shards == first.shards


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "entire_id", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_command_says_which_layout_by_what_and_which_counts_differ(tmp_path):
    tree = write_tree(tmp_path / "crops", draw_crops(small_tree("market1501")))
    done = run("pack", tree, tmp_path / "out", "--layout", "auto", "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("layout market1501: names like ")
    assert "left out gt_bbox, readme.txt: they come with the data set and are crops of no split" in lines
    assert "market1501: 19 crops in gallery, by the authors' count 19,732" in lines
    assert any(line.startswith("market1501: 0 of 7 counts are those of its authors; ") for line in lines)
    assert "not released" not in done.stderr
    report = json.loads(done.stdout)
    assert report["layout"] == "market1501"
    assert report["official"][-1] == {"splits": ["gallery"], "what": "junk", "expected": 3819, "found": 5}

    (tmp_path / "out/data").rename(tmp_path / "lost")
    repaired = run("verify", tmp_path / "out", "--repair", tree, "--layout", "auto")
    assert repaired.returncode == 0, repaired.stderr
    assert "layout market1501" in repaired.stderr
    refused = run("verify", tmp_path / "out", "--lists", tmp_path)
    assert refused.returncode == 2
    unknown = run("pack", tmp_path / "out", tmp_path / "again", "--layout", "auto")
    assert unknown.returncode == 1
    assert "packed already" in unknown.stderr
    ours = run("pack", tree, tmp_path / "again")
    assert ours.returncode == 1
    assert "--layout (auto finds out)" in ours.stderr
