"""The drawn data set: its layout and sizes, that it repeats, and that its task is neither trivial nor hopeless."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from entire_id.errors import OutputExistsError
from entire_id.sources.sample import SampleConfig, draw_sample

NAME = re.compile(r"^(-?\d+)_c(\d+)s(\d+)_(\d+)\.jpg$")
SMALL = SampleConfig(num_people=4, num_distractors=2, crops_per_person=8, crops_per_distractor=3)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as the command line draws it when nothing is asked for."""
    out = tmp_path_factory.mktemp("sample") / "crops"
    draw_sample(out, SampleConfig())
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(folder: Path, config: SampleConfig) -> dict[str, bytes]:
    draw_sample(folder, config)
    return files(folder)


def numbers(path: Path) -> tuple[int, int, int, int]:
    pid, camid, seq, frame = NAME.match(path.name).groups()
    return int(pid), int(camid), int(seq), int(frame)


# --- layout -----------------------------------------------------------------------------------------------------------


def test_names_follow_the_layout(default):
    names = [path.name for path in default.rglob("*.jpg")]
    assert len(set(names)) == len(names) == SampleConfig().num_crops == 2000
    assert all(re.fullmatch(r"\d{5}_c\d{3}s\d_\d+\.jpg", name) and NAME.match(name) for name in names)
    assert {path.name for path in default.iterdir()} == {"query", "bounding_box_test", "cameras.csv"}


def test_person_0_and_camera_0_exist(default):
    keys = [numbers(path) for path in default.rglob("*.jpg")]
    assert {pid for pid, *_ in keys} == set(range(110))
    assert {camid for _, camid, *_ in keys} == set(range(37))
    assert {seq for *_, seq, _ in keys} == {0, 1}


def test_every_query_has_a_match_in_another_camera(default):
    cameras = defaultdict(set)
    for path in (default / "bounding_box_test").iterdir():
        pid, camid, *_ = numbers(path)
        cameras[pid].add(camid)
    queries = [numbers(path)[:2] for path in (default / "query").iterdir()]
    assert len(set(queries)) == len(queries)  # one for each person and camera
    assert all(camid in cameras[pid] and cameras[pid] - {camid} for pid, camid in queries)
    assert {pid for pid, _ in queries} == set(range(90))
    assert all(len(cameras[pid]) == 1 for pid in range(90, 110))


def test_people_stay_on_their_continent_with_few_exceptions(default):
    rows = list(csv.DictReader((default / "cameras.csv").read_text().splitlines()))
    continent = {int(row["camid"]): row["continent"] for row in rows}
    seen = defaultdict(set)
    for path in default.rglob("*.jpg"):
        seen[numbers(path)[0]].add(continent[numbers(path)[1]])
    travellers = [pid for pid, continents in seen.items() if len(continents) > 1]
    assert 1 <= len(travellers) <= 15


def test_cameras_csv_describes_37_cameras_on_4_continents(default):
    rows = list(csv.DictReader((default / "cameras.csv").read_text().splitlines()))
    assert [row["camid"] for row in rows] == [str(camid) for camid in range(37)]
    assert {row["continent"] for row in rows} == {"asia", "europe", "north_america", "south_america"}
    assert all(row["scene"] for row in rows)


def test_sizes_are_those_of_the_published_crops(default):
    sizes = []
    for path in default.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            sizes.append(image.size)
    widths, heights = np.array(sizes).T
    assert widths.min() >= 22
    assert widths.max() <= 173
    assert heights.min() >= 62
    assert heights.max() <= 343
    assert np.median(widths) == pytest.approx(67, abs=7)
    assert np.median(heights) == pytest.approx(162, abs=16)
    assert np.median(heights / widths) == pytest.approx(2.43, abs=0.2)


def test_a_train_part_holds_people_of_its_own(tmp_path):
    found = drawn(tmp_path / "out", SampleConfig(4, 1, 3, crops_per_person=6, crops_per_distractor=2))
    train = [Path(name).name for name in found if name.startswith("bounding_box_train/")]
    assert len(train) == 18
    assert {numbers(Path(name))[0] for name in train} == {0, 1, 2}
    assert not {found[name] for name in found if "train" in name} & {found[name] for name in found if "test" in name}


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("num_crops", [40, 41, 59, 99, 100, 119, 199, 500, 999, 2000, 10_000])
def test_of_size_keeps_to_five_percent(num_crops, train):
    config = SampleConfig.of_size(num_crops, seed=3, train=train)
    assert config.num_crops == pytest.approx(num_crops, rel=0.05)
    assert config.seed == 3
    assert config.num_people >= 2
    assert config.num_distractors >= 1
    assert bool(config.num_train_people) == train


def test_the_number_of_crops_is_the_number_of_files_and_of_calls(tmp_path):
    calls = []
    num_crops = draw_sample(tmp_path / "out", SMALL, calls.append)
    assert num_crops == SMALL.num_crops == len(list((tmp_path / "out").rglob("*.jpg")))
    assert calls == list(range(1, num_crops + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_people", 1), ("num_distractors", -1), ("crops_per_person", 3), ("crops_per_distractor", 0), ("seed", -1)],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}, expected"):
        SampleConfig(**{field: value})


def test_every_size_keeps_to_five_percent():
    sizes = np.arange(20, 3000)
    found = np.array([SampleConfig.of_size(int(size)).num_crops for size in sizes])
    assert (np.abs(found - sizes) <= 0.05 * sizes).all()


def test_too_few_crops_are_refused():
    with pytest.raises(ValueError, match="num_crops is 5, expected 20"):
        SampleConfig.of_size(5)


# --- repeatable -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    first = drawn(tmp_path / "a", SMALL)
    assert drawn(tmp_path / "b", SMALL) == first
    other = drawn(tmp_path / "c", SampleConfig(4, 2, crops_per_person=8, crops_per_distractor=3, seed=1))
    assert not {name for name in first if other.get(name) == first[name]}


def test_more_people_change_nobody(tmp_path):
    few = drawn(tmp_path / "few", SMALL)
    many = drawn(tmp_path / "many", SampleConfig(7, 0, 2, crops_per_person=8))
    people = {name for name in few if "0000" in name and int(Path(name).name[:5]) < 4}
    assert len(people) == 32
    assert all(many[name] == few[name] for name in people)


# --- nothing half-written ---------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="not empty"):
        draw_sample(tmp_path / "out", SMALL)
    with pytest.raises(OutputExistsError):
        draw_sample(tmp_path / "out" / "mine.txt", SMALL)
    assert files(tmp_path) == {"out/mine.txt": b"precious"}


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    assert drawn(tmp_path / "out", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def stop(num_crops: int) -> None:
        if num_crops == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "out", SMALL, stop)
    assert not list(tmp_path.iterdir())


# --- a fair toy -------------------------------------------------------------------------------------------------------


def colours(path: Path) -> np.ndarray:
    """How often each of 8 x 4 x 4 HSV bins occurs in each of six stripes, square roots of unit length."""
    hsv = np.asarray(Image.open(path).convert("HSV").resize((32, 96)), dtype=np.int64)
    bins = hsv[..., 0] // 32 * 16 + hsv[..., 1] // 64 * 4 + hsv[..., 2] // 64
    histograms = [np.bincount(stripe.ravel(), minlength=128) for stripe in np.split(bins, 6)]
    root = np.sqrt(np.concatenate(histograms))
    return root / np.linalg.norm(root)


def describe(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    paths = sorted(folder.iterdir())
    pids, camids = np.array([numbers(path)[:2] for path in paths]).T
    return np.stack([colours(path) for path in paths]), pids, camids


def mean_average_precision(similarity: np.ndarray, relevant: np.ndarray, ignored: np.ndarray) -> float:
    precisions = []
    for scores, wanted, dropped in zip(similarity, relevant, ignored, strict=True):
        hits = wanted[~dropped][np.argsort(-scores[~dropped], kind="stable")]
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(precisions))


def test_plain_colours_find_people_but_not_all(default):
    queries, query_pids, query_camids = describe(default / "query")
    gallery, pids, camids = describe(default / "bounding_box_test")
    same_pid, same_camera = query_pids[:, None] == pids, query_camids[:, None] == camids
    similarity = queries @ gallery.T
    across = mean_average_precision(similarity, same_pid, same_pid & same_camera)
    within = mean_average_precision(similarity, same_pid, same_pid & ~same_camera)
    chance = mean_average_precision(np.random.default_rng(0).random(similarity.shape), same_pid, same_pid & same_camera)
    assert 0.3 < across < 0.7
    assert within > across + 0.2
    assert chance < 0.05
