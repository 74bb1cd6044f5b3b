"""Other data sets: names, lists, junk and distractors, and the counts of their authors."""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entire_id.errors import LayoutNotFoundError, SourceError
from entire_id.records import DISTRACTOR_PID, JUNK_PID, Reason, Rejected, Sample
from entire_id.sources.crops import CropSource
from entire_id.sources.files import Folder
from entire_id.sources.layouts import LAYOUTS, open_source, recognise
from entire_id.sources.official import Found, compare_counts

from builders import write_zip
from cousins import (
    MSMT_FOLDERS,
    box_folders,
    folder_name,
    last_names,
    market_names,
    msmt_tree,
    names_of,
    occluded_by_copying,
    occluded_lists,
    small_tree,
    write_empty_zip,
    write_tree,
)


def listed(source) -> tuple[dict[str, Sample], dict[str, Reason]]:
    """Samples by key, and reasons by path; nothing stands in both, or twice."""
    samples, rejected = {}, {}
    for item in source.samples():
        if isinstance(item, Rejected):
            assert item.path not in rejected
            rejected[item.path] = item.reason
        else:
            assert item.key not in samples
            samples[item.key] = item
    assert rejected.keys().isdisjoint(sample.path for sample in samples.values())
    return samples, rejected


def found_of(samples: Iterable[Sample]) -> dict[str, Found]:
    crops, junk = Counter(), Counter()
    pids: dict[str, set[int]] = {}
    for sample in samples:
        crops[sample.split] += 1
        junk[sample.split] += sample.pid == JUNK_PID
        pids.setdefault(sample.split, set()).add(sample.pid)
    return {split: Found(crops[split], pids[split] - {JUNK_PID, DISTRACTOR_PID}, junk[split]) for split in crops}


def write_small(tmp_path: Path, name: str, kind: str = "folder") -> Path:
    files, called = small_tree(name), folder_name(LAYOUTS[name])
    if kind == "zip":
        return write_zip(tmp_path / f"{name}.zip", {f"{called}/{path}": data for path, data in files.items()})
    return write_tree(tmp_path / name / called, files.items())


DUKE_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
HOME = dict(zip(("train", "query", "gallery"), DUKE_FOLDERS, strict=True))
KINDS = pytest.mark.parametrize("kind", ["folder", "zip"])
EVERY = pytest.mark.parametrize("name", LAYOUTS)


# --- the official trees, in full --------------------------------------------------------------------------------------


def official_tree(name: str) -> tuple[list[str], dict[str, bytes]]:
    """As many files as the authors count, with their names; and the lists."""
    if name.startswith("market1501"):
        return official_market(with_500k=name.endswith("500k")), {}
    if name in MSMT_FOLDERS:
        counts = {"train": 30_248, "val": 2_373, "query": 11_659, "gallery": 82_161}
        files = msmt_tree(name, counts, 1_041, 3_060)
        lists = {path: data for path, data in files.items() if path.endswith(".txt")}
        return [path for path in files if path not in lists], lists
    if name == "last":
        crops = {"train": 71_248, "val/query": 1_000, "val/gallery": 20_379}
        crops |= {"test/query": 10_176, "test/gallery": 125_353}
        pids = {"train": range(5_000), "val/query": range(50), "val/gallery": range(56)}
        return last_names(crops, pids | {"test/query": range(100, 3_000), "test/gallery": range(5_806)}), {}
    train, query, gallery = {  # crops and people
        "dukemtmc-reid": ((16_522, 702), (2_228, 702), (17_661, 1_110)),
        "occluded-duke": ((16_522, 702), (2_228, 702), (17_661, 1_110)),  # Duke's: the lists do the rest
        "cuhk03-np-detected": ((7_365, 767), (1_400, 700), (5_332, 700)),
        "cuhk03-np-labeled": ((7_368, 767), (1_400, 700), (5_328, 700)),
    }[name]
    family = "cuhk03-np" if name.startswith("cuhk") else "dukemtmc-reid"
    names = [
        names_of(family, train[0], range(2000, 2000 + train[1]), 8),
        names_of(family, query[0], range(1, 1 + query[1]), 8),
        names_of(family, gallery[0], range(1, 1 + gallery[1]), 8, 1000),
    ]
    lists = official_occluded_lists(*names) if name == "occluded-duke" else {}
    return box_folders(family, *names), lists


def official_market(*, with_500k: bool) -> list[str]:
    gallery_people = names_of("market1501", 13_115, range(2, 752), 6, 1000)
    rest = market_names(0, 0, 1, 2_798, 3_819)
    paths = box_folders(
        "market1501",
        names_of("market1501", 12_936, range(800, 1551), 6),
        names_of("market1501", 3_368, range(2, 752), 6),
        gallery_people,
    )
    distractors = [f"images/{name}" for name in names_of("market1501", 20_000 * with_500k, [0], 6, 100_000)]
    return [*paths, *rest, *distractors, "readme.txt", "gt_query/0001_c1s1_001051_00_good.mat"]


def official_occluded_lists(train: list[str], query: list[str], gallery: list[str]) -> dict[str, bytes]:
    """340 of the queries are Duke's, 1,870 are of its gallery, which stays whole; they are 519 people."""
    moved = [name for name in gallery if int(name[:4]) <= 519][:1_870]
    return occluded_lists(train[:15_618], query[:340] + moved, gallery)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing looks for garbage among hundreds of thousands of names, which takes a fifth of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.official])
def test_a_tree_of_official_size_has_the_official_counts(name, tmp_path):
    layout = LAYOUTS[name]
    paths, lists = official_tree(name)
    place = write_empty_zip(tmp_path / f"{name}.zip", (f"{folder_name(layout)}/{path}" for path in paths))
    lists_path = write_tree(tmp_path / "lists", lists.items()) if lists else None
    rejected = []
    source = open_source(place, name, lists_path=lists_path)
    samples = (item for item in source.samples() if isinstance(item, Sample) or rejected.append(item.reason))
    counts = compare_counts(layout.official, found_of(samples))
    assert [count for count in counts if not count.is_official] == []
    assert len(counts) >= 5
    left = (16_522 - 15_618) + (2_228 - 340) if name == "occluded-duke" else 0  # of Duke's
    assert rejected == [Reason.OUTSIDE_SPLITS] * left


def test_train_and_val_of_msmt17_are_counted_together(tmp_path):
    samples, _ = listed(open_source(write_small(tmp_path, "msmt17-v2"), "msmt17-v2"))
    counts = compare_counts(LAYOUTS["msmt17-v2"].official, found_of(samples.values()))
    assert [(count.splits, count.expected, count.found) for count in counts] == [
        (("train", "val"), 32_621, 18),
        (("train", "val"), 1_041, 3),
        (("query",), 11_659, 8),
        (("query",), 3_060, 4),
        (("gallery",), 82_161, 16),
        (("gallery",), 3_060, 4),
    ]


def test_a_part_of_a_set_is_told_from_the_whole():
    counts = compare_counts(LAYOUTS["market1501"].official, {"query": Found(3_368, set(range(749)))})
    assert [(count.splits, count.what, count.found) for count in counts if not count.is_official] == [
        (("train",), "crops", 0),
        (("train",), "identities", 0),
        (("query",), "identities", 749),
        (("gallery",), "crops", 0),
        (("gallery",), "identities", 0),
        (("gallery",), "junk", 0),
    ]


# --- what becomes of names --------------------------------------------------------------------------------------------


@KINDS
@EVERY
def test_every_layout_reads_its_own_tree_from_folder_and_zip(name, kind, tmp_path):
    source = open_source(write_small(tmp_path, name, kind), name)
    samples, rejected = listed(source)
    assert len(samples) >= 20
    assert {"train", "query", "gallery"} <= {sample.split for sample in samples.values()}
    assert set(rejected.values()) == ({Reason.OUTSIDE_SPLITS} if name == "occluded-duke" else set())
    for sample in samples.values():
        source.read(sample.path)


@pytest.mark.parametrize(
    ("layout", "path", "numbers"),
    [
        ("market1501", "query/0002_c1s1_000451_03.jpg", (2, 1, 1, 451)),
        ("market1501", "bounding_box_test/-1_c3s2_086167_01.jpg", (-1, 3, 2, 86167)),
        ("market1501", "bounding_box_test/0000_c6s3_086167_01.jpg", (-2, 6, 3, 86167)),
        ("market1501", "query/00009_c021s0_760487.jpg", None),
        ("market1501", "query/0002_c1s1_000451_03_x.jpg", None),
        ("market1501-500k", "images/0000_c6s3_086167_01.jpg", (-2, 6, 3, 86167)),
        ("market1501-500k", "images/0000_c6_anything.jpg", (-2, 6, -1, -1)),
        ("market1501-500k", "images/-1_c12x.jpg", (-1, 12, -1, -1)),
        ("market1501-500k", "images/0007_c6_anything.jpg", None),
        ("dukemtmc-reid", "query/0005_c2_f0046985.jpg", (5, 2, -1, 46985)),
        ("dukemtmc-reid", "query/0005_c2_0046985.jpg", None),
        ("cuhk03-np-detected", "query/0003_c1_22.png", (3, 1, -1, -1)),
        ("cuhk03-np-detected", "query/1_001_1_01.png", (10001, 11, -1, -1)),
        ("cuhk03-np-detected", "query/2_001_2_01.png", (20001, 22, -1, -1)),
        ("cuhk03-np-detected", "query/12_001_1_01.png", None),
        ("last", "train/000012/000012_film_00345.jpg", (12, 2, -1, -1)),
        ("last", "test/query/000012_film_00345.jpg", (12, 0, -1, -1)),
        ("last", "test/gallery/000012/000012_film_1.jpg", (12, 1, -1, -1)),
        ("last", "val/query/000012_film_00345.jpg", (1000012, 0, -1, -1)),
        ("last", "val/gallery/000012/000012_film_1.jpg", (1000012, 1, -1, -1)),
        ("last", "train/000012/film_000012.jpg", None),
    ],
)
def test_names_are_read_as_a_whole_or_not_at_all(layout, path, numbers, tmp_path):
    write_tree(tmp_path, [(path, b"")])
    (item,) = CropSource(tmp_path, LAYOUTS[layout]).samples()
    assert (item[3:7] if isinstance(item, Sample) else None) == numbers
    assert isinstance(item, Sample) or item.reason is Reason.NAME


def test_what_comes_with_market_is_left_out_and_named_and_the_500k_are_rejected_without_their_layout(tmp_path):
    path = write_small(tmp_path, "market1501-500k")
    for name, expected in (("market1501", {Reason.OUTSIDE_SPLITS: 2}), ("market1501-500k", {})):
        source = open_source(path, name)
        samples, rejected = listed(source)
        assert Counter(rejected.values()) == expected
        assert source.left_out == ("gt_bbox", "readme.txt")
        pids = Counter(sample.pid for sample in samples.values() if sample.split == "gallery")
        assert (pids[JUNK_PID], pids[DISTRACTOR_PID], pids[0]) == (5, 8 - sum(expected.values()), 0)


def test_the_only_folders_below_folders_that_count_are_those_of_the_layout(tmp_path):
    write_tree(
        tmp_path, [("test/000001_film_1.jpg", b""), ("test/other/000001_film_1.jpg", b""), ("test/query/x.txt", b"")]
    )
    _, rejected = listed(CropSource(tmp_path, LAYOUTS["last"]))
    assert rejected == {
        "test/000001_film_1.jpg": Reason.OUTSIDE_SPLITS,
        "test/other/000001_film_1.jpg": Reason.OUTSIDE_SPLITS,
        "test/query/x.txt": Reason.NOT_AN_IMAGE,
    }


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_say_who_and_where_and_the_rest_is_rejected(tmp_path):
    one, two, three = (f"0000/0000_00{n}_0{n}_0303morning_0015_{n}.jpg" for n in (1, 2, 3))
    tree = {
        f"train/{one}": b"",
        f"train/{two}": b"",
        "train/0000/0000_009_01_0303morning_0015_0.jpg": b"",
        "train/0000/Thumbs.db": b"",
        f"test/{one}": b"",
        "extra/readme.txt": b"",
        "list_train.txt": f"\ufeff{one} 7\r\n./{two} 8\r\n\r\n".encode(),
        "list_val.txt": f"{two} 8\n{three} 8\n".encode(),
        "list_gallery.txt": f"{one}\t0\n".encode(),
    }
    source = open_source(write_tree(tmp_path, tree.items()), "msmt17-v1")
    twice, *others = sorted(source.samples(), key=lambda item: getattr(item, "reason", "") != Reason.DUPLICATE_KEY)
    assert (twice.path, twice.detail) == (f"train/{two}", "list_val.txt names it, after list_train.txt")
    samples = {item.path: item for item in others if isinstance(item, Sample)}
    rejected = {item.path: item.reason for item in others if isinstance(item, Rejected)}
    assert {path: (s.split, s.pid, s.camid, s.key) for path, s in samples.items()} == {
        f"train/{one}": ("train", 7, 1, f"train/{one[:-4]}"),
        f"train/{two}": ("train", 8, 2, f"train/{two[:-4]}"),
        f"test/{one}": ("gallery", 0, 1, f"gallery/{one[:-4]}"),
    }
    assert rejected == {
        f"train/{three}": Reason.MISSING,
        "train/0000/0000_009_01_0303morning_0015_0.jpg": Reason.OUTSIDE_SPLITS,
        "train/0000/Thumbs.db": Reason.NOT_AN_IMAGE,
        "extra/readme.txt": Reason.OUTSIDE_SPLITS,
    }


@pytest.mark.parametrize("line", ["0000/a.jpg", "0000/a.jpg x", "7"])
def test_a_line_that_is_none_is_an_error_that_names_it(line, tmp_path):
    write_tree(tmp_path, [("train/0000/a.jpg", b""), ("list_train.txt", f"0000/b.jpg 1\n{line}\n".encode())])
    with pytest.raises(SourceError, match=r"list_train\.txt.*line 2") as caught:
        list(open_source(tmp_path, "msmt17-v1").samples())
    assert line in str(caught.value)


def test_lines_that_climb_out_find_nothing(tmp_path):
    write_tree(tmp_path / "set", [("train/0000/a.jpg", b""), ("list_train.txt", b"../../0_0_1_secret.jpg 1\n")])
    (tmp_path / "0_0_1_secret.jpg").write_bytes(b"")
    samples, rejected = listed(open_source(tmp_path / "set", "msmt17-v1"))
    assert samples == {}
    assert rejected["train/../../0_0_1_secret.jpg"] is Reason.MISSING


def test_without_lists_there_is_no_msmt17_and_lists_may_lie_elsewhere(tmp_path):
    files = small_tree("msmt17-v2")
    lists = {name: data for name, data in files.items() if name.endswith(".txt")}
    root = write_tree(tmp_path / "crops", ((name, data) for name, data in files.items() if name not in lists))
    with pytest.raises(SourceError, match=r"list_query\.txt.*--lists"):
        open_source(root, "msmt17-v2")
    elsewhere = write_tree(tmp_path / "lists", lists.items())
    samples, rejected = listed(open_source(root, "msmt17-v2", lists_path=elsewhere))
    assert Counter(sample.split for sample in samples.values()) == {"train": 12, "val": 6, "query": 8, "gallery": 16}
    assert rejected == {}
    assert recognise(root, elsewhere).layout.name == "msmt17-v2"
    with pytest.raises(SourceError, match="has no lists"):
        open_source(write_small(tmp_path, "market1501"), "market1501", lists_path=elsewhere)


def split_lists(files: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The crops of Duke, and the lists of Occluded-Duke."""
    lists = {name: data for name, data in files.items() if name.endswith(".list")}
    return {name: data for name, data in files.items() if name not in lists}, lists


@KINDS
def test_lists_of_occluded_duke_are_applied_to_duke(kind, tmp_path):
    duke, lists = split_lists(small_tree("occluded-duke"))
    gone = max(name for name in duke if name.startswith("bounding_box_test/"))
    del duke[gone]
    elsewhere = write_tree(tmp_path / "Occluded_Duke", lists.items())
    if kind == "zip":
        path = write_zip(tmp_path / "DukeMTMC-reID.zip", {f"DukeMTMC-reID/{name}": b"" for name in duke})
    else:
        path = write_tree(tmp_path / "duke/DukeMTMC-reID", duke.items())
    source = open_source(path, "occluded-duke", lists_path=elsewhere)
    samples, rejected = listed(source)
    for split, name in (("train", "train.list"), ("query", "query.list"), ("gallery", "gallery.list")):
        expected = set(lists[name].decode().split()) - {gone.partition("/")[2]}
        assert {sample.name for sample in samples.values() if sample.split == split} == expected
    moved = [one.path for one in samples.values() if one.split == "query" and "bounding_box_test" in one.path]
    assert len(moved) == 2
    assert sum(one.path in moved for one in samples.values()) == 3  # one of them stays in the gallery, too
    for one in moved:
        source.read(one)
    assert Counter(rejected.values()) == {Reason.OUTSIDE_SPLITS: 4 + 4, Reason.MISSING: 1}
    assert recognise(path, elsewhere).layout.name == "occluded-duke"


NAME = st.sampled_from([f"000{pid}_c{camid}_f000000{camid}.jpg" for pid in (1, 2) for camid in (1, 2)])


@given(st.sets(st.tuples(st.sampled_from(DUKE_FOLDERS), NAME)), *[st.lists(NAME, max_size=5)] * 3)
def test_lists_and_duke_are_what_the_authors_script_makes_of_them(places, train, query, gallery):
    duke = {f"{folder}/{name}": f"{folder}/{name}".encode() for folder, name in places}
    duke |= dict.fromkeys((f"{folder}/Thumbs.db" for folder in DUKE_FOLDERS), b"")
    lists = occluded_lists(train, query, gallery)
    expected = occluded_by_copying(duke, lists)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(write_tree(Path(folder), (duke | lists).items()), "occluded-duke")
        items = list(source.samples())
        samples = [item for item in items if isinstance(item, Sample)]
        made = {f"{HOME[one.split]}/{one.name}": source.read(one.path).data for one in samples}
    assert len(samples) == len(made)
    assert made == expected
    reasons = Counter(item.reason for item in items if isinstance(item, Rejected))
    lines = [*((HOME["train"], one) for one in train), *(("query", one) for one in query)]
    lines += [(HOME["gallery"], one) for one in gallery]
    assert reasons[Reason.DUPLICATE_KEY] == len(lines) - len(set(lines))
    assert reasons[Reason.MISSING] == len(set(lines)) - len(samples)
    assert reasons[Reason.OUTSIDE_SPLITS] == len(places - {tuple(one.path.split("/")) for one in samples})
    assert reasons[Reason.NOT_AN_IMAGE] == 3
    assert len(items) == len(samples) + reasons.total()


def test_a_line_that_stands_twice_and_one_of_two_lists_without_a_file_are_told_below_a_wrapping_folder(tmp_path):
    duke, lists = split_lists(small_tree("occluded-duke"))
    first, *_ = lists["gallery.list"].decode().split()
    lists["gallery.list"] += f"{first}\n0007_c1_f0000001.jpg\n".encode()
    lists["query.list"] += b"0007_c1_f0000001.jpg\n"
    write_tree(tmp_path / "wrap/duke", (duke | lists).items())
    items = list(open_source(tmp_path, "occluded-duke").samples())
    told = [item for item in items if isinstance(item, Rejected) and item.reason is not Reason.OUTSIDE_SPLITS]
    assert [(item.path, item.reason, item.detail) for item in told] == [
        (
            f"wrap/duke/bounding_box_test/{first}",
            Reason.DUPLICATE_KEY,
            "gallery.list names it, after gallery.list",
        ),
        ("wrap/duke/query/0007_c1_f0000001.jpg", Reason.MISSING, "query.list names it"),
        ("wrap/duke/bounding_box_test/0007_c1_f0000001.jpg", Reason.MISSING, "gallery.list names it"),
    ]


def test_a_folder_made_by_the_script_of_occluded_duke_needs_no_lists(tmp_path):
    files = {name: data for name, data in small_tree("dukemtmc-reid").items() if not name.endswith(".list")}
    root = write_tree(tmp_path / "Occluded_Duke", files.items())
    samples, rejected = listed(open_source(root, "occluded-duke"))
    assert (len(samples), rejected) == (32, {})
    assert recognise(root).layout.name == "occluded-duke"
    assert recognise(root.rename(tmp_path / "Duke")).layout.name == "dukemtmc-reid"


# --- which set is it? -------------------------------------------------------------------------------------------------


@KINDS
@EVERY
def test_auto_recognises_every_layout_and_says_by_what(name, kind, tmp_path):
    path = write_small(tmp_path, name, kind)
    found = recognise(path)
    assert found.layout.name == name
    assert found.why.startswith("names like ")
    for sign in (*found.layout.marks, *found.layout.variants[:1]):
        assert sign in found.why
    assert sorted(open_source(path, "auto").samples(), key=str) == sorted(open_source(path, name).samples(), key=str)


def test_detected_and_labeled_are_told_apart_by_their_folders_alone(tmp_path):
    files = small_tree("cuhk03-np-detected")
    write_tree(tmp_path / "np/Detected", files.items())
    write_tree(tmp_path / "np/labeled", list(files.items())[:20])
    for name, number, sister in (("detected", 32, "labeled"), ("labeled", 20, "Detected")):
        source = open_source(tmp_path / "np", f"cuhk03-np-{name}")
        assert len(list(source.samples())) == number
        assert source.left_out == (sister,)
    assert len(list(open_source(tmp_path / "np/labeled", "cuhk03-np-labeled").samples())) == 20
    with pytest.raises(SourceError, match="holds labeled, and not detected"):
        open_source(tmp_path / "np/labeled", "cuhk03-np-detected")
    with pytest.raises(SourceError, match=r"cuhk03-np-detected \(.*cuhk03-np-labeled \(.*--layout"):
        recognise(tmp_path / "np")
    unnamed = (tmp_path / "np/labeled").rename(tmp_path / "cuhk")
    with pytest.raises(SourceError, match="may be several layouts"):
        recognise(unnamed)
    assert len(list(open_source(unnamed, "cuhk03-np-labeled").samples())) == 20


def test_what_may_be_several_sets_or_none_is_an_error_that_says_so(tmp_path):
    for name in MSMT_FOLDERS:
        write_tree(tmp_path / "both" / name, small_tree(name).items())
    with pytest.raises(SourceError, match="msmt17-v1.*msmt17-v2"):
        open_source(tmp_path / "both", "auto")
    for name in ("one", "two"):
        write_tree(tmp_path / "twice" / name, small_tree("market1501").items())
    with pytest.raises(SourceError, match="several data sets"):
        recognise(tmp_path / "twice")
    write_tree(tmp_path / "none", [("query/holiday.jpg", b""), ("query/readme.txt", b"")])
    with pytest.raises(SourceError, match="no known layout.*market1501"):
        recognise(tmp_path / "none")
    with pytest.raises(LayoutNotFoundError, match="--layout"):
        open_source(tmp_path / "none", "last")
    with pytest.raises(LayoutNotFoundError, match="mask_test_v2.*found 'crops-of-mine'"):
        recognise(write_tree(tmp_path / "flat", [("crops-of-mine/a.jpg", b"")]))


def test_folders_of_people_are_not_looked_through_for_other_layouts(tmp_path, monkeypatch):
    path = write_small(tmp_path, "last")
    seen = Counter()
    folders = Folder.folders
    monkeypatch.setattr(Folder, "folders", lambda self, one: seen.update([one]) or folders(self, one))
    assert recognise(path).layout.name == "last"
    assert set(seen) == {"", "test"}
    root = write_tree(tmp_path / "other/test/deeper", small_tree("market1501").items())
    assert recognise(root.parents[1]).layout.name == "market1501"


def test_a_few_wrong_names_do_not_hide_a_layout_and_many_do(tmp_path):
    files = small_tree("market1501")
    root = write_tree(tmp_path, files.items())
    write_tree(root, [(f"query/x{n}.jpg", b"") for n in range(6)])
    assert recognise(root).layout.name == "market1501"
    write_tree(root, [(f"{folder}/y{n}.jpg", b"") for n in range(60) for folder in ("query", "bounding_box_test")])
    with pytest.raises(SourceError, match="no known layout"):
        recognise(root)


def test_sets_of_several_layouts_in_one_folder_are_told_from_one_set_of_several_layouts(tmp_path):
    for name in ("market1501", "msmt17-v2", "dukemtmc-reid"):
        write_tree(tmp_path / "two" / name, small_tree(name).items())
    write_tree(tmp_path / "three/a", small_tree("msmt17-v2").items())
    write_tree(tmp_path / "three/b", small_tree("msmt17-v2").items())
    places = r"holds several data sets \(dukemtmc-reid, market1501, msmt17-v2\): market1501 \(names like .*"
    with pytest.raises(SourceError, match=places + r"\)\. Give one of these folders, or name one with --layout$"):
        recognise(tmp_path / "two")
    with pytest.raises(SourceError, match=r"\(a, b\): msmt17-v2 \(.*\)\. Give one of these folders$"):
        recognise(tmp_path / "three")


def test_auto_says_of_msmt17_without_lists_what_it_lacks(tmp_path):
    files = small_tree("msmt17-v1").items()
    root = write_tree(tmp_path, ((name, data) for name, data in files if not name.endswith(".txt")))
    with pytest.raises(SourceError, match=r"fit msmt17-v1, but none of its lists list_train\.txt, .* --lists"):
        recognise(root)


def test_a_source_names_the_lists_that_are_not_there(tmp_path):
    root = write_small(tmp_path, "msmt17-v2")
    assert open_source(root, "msmt17-v2").missing_lists == ()
    for name in ("list_val.txt", "list_gallery.txt"):
        (root / name).unlink()
    part = open_source(root, "msmt17-v2")
    assert (part.has_lists, part.missing_lists) == (True, ("list_val.txt", "list_gallery.txt"))
    duke = open_source(write_small(tmp_path, "dukemtmc-reid"), "occluded-duke")
    assert (duke.has_lists, duke.missing_lists) == (False, ("train.list", "query.list", "gallery.list"))
    market = open_source(write_small(tmp_path, "market1501"), "market1501")
    assert (market.has_lists, market.missing_lists) == (False, ())
